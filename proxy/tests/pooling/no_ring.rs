//! A kernel that gives no io_uring, as in many containers.

use super::*;
use nix::errno::Errno;
use proxy::config::{self, IoUring};

/// From now on io_uring is refused to this thread and to those that it starts, as container engines do it.
fn refuse_io_uring() {
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code.try_into().expect("16 bits"), jt: 0, jf, k };
    let setup = libc::SYS_io_uring_setup.try_into().expect("a number of a call");
    let refuse = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).expect("a number of an error");
    let mut filter = [
        // The call's number.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, setup, 1),
        step(libc::BPF_RET | libc::BPF_K, refuse, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs().expect("anybody may have less");
    // SAFETY: the kernel copies the program, which lives during the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(Errno::result(set), Ok(0), "a filter of system calls");
    // SAFETY: it is refused before anything is looked at.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    assert_eq!(Errno::result(ring), Err(Errno::EPERM));
}

#[test]
fn where_the_kernel_refuses_io_uring_all_is_sent_without_it() {
    let test = || {
        refuse_io_uring();
        let mut typed = config::Raw::default();
        let c = Cluster::start(0, |raw| {
            raw.workers = 1;
            typed = raw.clone();
        });
        let mut clients: Vec<Raw> = (0..8).map(|_| Raw::login(c.port, &[])).collect();
        // Asked for again by a reload it is refused again.
        for io_uring in [IoUring::Auto, IoUring::Off, IoUring::Auto] {
            c.reload(config::Raw { io_uring, ..typed.clone() });
            for round in 0..20 {
                // Their answers come together.
                for (i, client) in clients.iter_mut().enumerate() {
                    client
                        .write(|out| write_query(out, &format!("select '{round} {i}', repeat('x', {})", round * 500)));
                }
                for (i, client) in clients.iter_mut().enumerate() {
                    let answer = client.until_ready();
                    assert!(answer[1].starts_with(&format!("D {round} {i} ")), "{answer:?}");
                    assert_eq!(answer[2..], ["C SELECT 1", "Z I"]);
                }
            }
        }
    };
    // The filter stays with its thread.
    std::thread::spawn(test).join().expect("all answers as they should be");
}
