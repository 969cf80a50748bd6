//! Bytes and messages of the PostgreSQL protocol, version 3.0.

pub mod backend;
pub mod codec;
pub mod console_error;
pub mod durability_error;
pub mod error_response;
pub mod frontend;
pub mod lossless;
pub mod pool_error;
pub mod promise_error;
pub mod proxy_protocol;
pub mod read_only_error;
pub mod sqlstate;
pub mod startup;
