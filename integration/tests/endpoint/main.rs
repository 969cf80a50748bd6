//! The endpoint in front of a real cluster: what speaks to it, and where it sends what is said.

mod drivers;
mod protocol;
mod routing;
