//! What `serve` says when it is ready, and where it listens by default.

use std::os::unix::fs::PermissionsExt;

use crate::harness::{Place, SIZE};

#[test]
fn the_json_line_has_everything_a_script_needs() {
    let place = Place::with_volume();
    let serving = place.serve("--key-file vm.key --name vm disk.img");
    let ready = &serving.ready;
    assert_eq!((ready["event"].as_str(), ready["size"].as_u64()), (Some("ready"), Some(SIZE)));
    let socket = place.path("hostveil/disk.img.sock");
    assert_eq!(ready["uri"], format!("nbd+unix:///vm?socket={}", socket.display()));
    assert!(ready["qemu"].as_str().unwrap().contains("driver=raw"));
    assert!(ready["libvirt"].as_str().unwrap().contains("type='raw'"));
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(socket.clone()), mode(place.path("hostveil"))), (0o600, 0o700));
}

#[test]
fn a_socket_that_a_killed_server_left_is_replaced() {
    let place = Place::with_volume();
    let killed = place.serve("--key-file vm.key --socket s disk.img").stop(rustix::process::Signal::KILL);
    assert_eq!(killed.code, -1);
    assert!(place.path("s").exists());
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    assert!(std::os::unix::net::UnixStream::connect(serving.socket()).is_ok());
}

#[test]
fn a_loopback_port_is_chosen_and_told() {
    let place = Place::with_volume();
    let serving = place.serve("--key-file vm.key --listen 127.0.0.1:0 disk.img");
    let uri = serving.ready["uri"].as_str().unwrap();
    let address = uri.strip_prefix("nbd://").unwrap().trim_end_matches('/');
    assert!(std::net::TcpStream::connect(address).is_ok(), "{uri}");
}
