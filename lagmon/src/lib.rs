//! The lag monitor: how far behind each standby is, in bytes and in time, by one clock.

pub mod config;
pub mod model;
