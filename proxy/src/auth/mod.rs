//! Who a client is: SCRAM verifiers from a userlist, and the exchange itself in both directions.

pub mod scram;
pub mod userlist;
