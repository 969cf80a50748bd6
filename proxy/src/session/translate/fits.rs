//! Does a Bind fit a statement that its server lacks? In a block that has failed nothing can be prepared there, so that
//! the server cannot tell. Pure.

use crate::session::statements::{Source, Text};
use crate::sql::highest_parameter;
use crate::wire::codec::split_cstring;
use crate::wire::error_response::ClientError;
use crate::wire::frontend::bind_counts;

/// What PostgreSQL says of a Bind whose parameters are not those of its statement, before it looks at the block. `None`
/// when they are, or when that cannot be told.
pub(super) fn misfit(frame: &[u8], name: &[u8], text: &Text) -> Option<ClientError> {
    let (formats, given) = bind_counts(frame)?;
    let bad = |what| Some(ClientError::BadBind { what });
    if formats > 1 && formats != given {
        return bad(format!("bind message has {formats} parameter formats but {given} parameters"));
    }
    if text.source == Source::Sql {
        return None;
    }
    let (sql, types) = split_cstring(&text.tail)?;
    let declared = u16::from_be_bytes(*types.first_chunk::<2>()?);
    let wanted = highest_parameter(sql)?.max(declared);
    let name = String::from_utf8_lossy(name);
    let told =
        || format!("bind message supplies {given} parameters, but prepared statement \"{name}\" requires {wanted}");
    if given == wanted { None } else { bad(told()) }
}
