//! Tests against real peers: QEMU, libnbd, fio, cryptsetup, the Linux kernel. One file a topic.
//!
//! They need programs that a machine may not have; `tools/test.sh` installs those and turns the
//! feature `peer-tests` on. A missing program fails a test, with the name of its package.

// The house's lints allow these in test functions; all that is here serves nothing else.
#![allow(clippy::unwrap_used, clippy::panic)]

mod attacks;
mod client;
mod form;
mod harness;
mod privilege;
mod reference;

mod cryptsetup;
mod fio;
mod full_disk;
mod guest;
mod key_slots;
mod kill;
mod libnbd;
mod loop_device;
mod luks1;
mod qemu;
mod sealed;
mod secrets;
mod syscalls;
mod tls;
