//! What operators do to a real cluster: take servers over, and what is refused.

mod adopt;
mod refuse;
