//! The model within small bounds: it is the code's, it holds, and it breaks without what it rests on.

mod agrees;
mod holds;
mod protections;
