//! Who a client is: the rules, the users and their secrets, and the exchanges themselves in both directions.

pub mod cancel_keys;
pub mod credentials;
pub mod hashing;
pub mod md5;
pub mod query;
pub mod rules;
pub mod scram;
pub mod userlist;
pub mod users;
