//! What a session can log in to servers with, as the client's login or the configuration left it.

use crate::auth::md5::Md5Hash;
use crate::auth::scram::LoginKeys;
use cluster::secret::Secret;

/// Enough to log in to a server as one user, or nothing: then only a server that asks for no proof lets us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// No proof at all.
    Nothing,
    /// What a client's SCRAM login left. Answers SCRAM from a server that has the same verifier.
    Keys(LoginKeys),
    /// An MD5 hash. Answers an MD5 challenge.
    Md5(Md5Hash),
    /// A password. Answers everything.
    Password(Secret),
}
