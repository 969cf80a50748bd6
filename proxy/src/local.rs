//! The Unix-domain socket for clients of this host.

use crate::inherit::Inherited;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where clients look for it, as in PostgreSQL: named for the port.
pub(crate) fn path(dir: &Path, port: u16) -> PathBuf {
    dir.join(format!(".s.PGSQL.{port}"))
}

/// The name of the socket for the process that comes after this one.
pub(crate) fn name(path: &Path) -> String {
    format!("unix {}", path.display())
}

/// Listen at `path`: on the socket of the process before, where it has one, else on a new one with that mode.
///
/// # Errors
/// Somebody else listens there, or the system's.
pub(crate) fn listen(path: &Path, mode: u32, backlog: i32, inherited: &mut Inherited) -> io::Result<UnixListener> {
    if let Some(socket) = inherited.take(&name(path)) {
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        return Ok(listener);
    }
    remove_stale(path)?;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    // Before it listens: until then nobody can connect.
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// A socket file outlives a process that was killed. It is removed only when it is a socket and nobody listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            use std::os::unix::fs::FileTypeExt;
            if std::fs::symlink_metadata(path)?.file_type().is_socket() {
                std::fs::remove_file(path)
            } else {
                Err(io::ErrorKind::AlreadyExists.into())
            }
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = path(dir.path(), 6432);
        let first = listen(&at, 0o700, 8, &mut Inherited::default()).unwrap();
        assert_eq!(std::fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o700);
        let again = |inherited: &mut Inherited| listen(&at, 0o777, 8, inherited);
        assert_eq!(again(&mut Inherited::default()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // The next process gets the same socket.
        let mut inherited = Inherited::new(vec![(name(&at), first.try_clone().unwrap().into())]);
        let second = again(&mut inherited).unwrap();
        drop((first, second));
        drop(again(&mut Inherited::default()).unwrap());
        std::fs::remove_file(&at).unwrap();
        std::fs::write(&at, "precious").unwrap();
        assert!(again(&mut Inherited::default()).is_err());
        assert_eq!(std::fs::read_to_string(&at).unwrap(), "precious");
    }
}
