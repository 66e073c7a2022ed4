//! A disk or socket that is in use: exit code 5.

use crate::harness::Place;

#[test]
fn a_served_disk_is_busy() {
    let place = Place::with_volume();
    let _serving = place.serve("--key-file vm.key --socket first disk.img");
    for command in [
        "serve --key-file vm.key --socket second disk.img",
        "serve --key-file vm.key --socket second --read-only disk.img",
        "format --key-file vm.key --size 1M --force disk.img",
    ] {
        place.run(command).fails(5, "disk.img is in use by another program");
    }
    place.run("inspect disk.img").succeeds();
}

#[test]
fn readers_share() {
    let place = Place::with_volume();
    let _one = place.serve("--key-file vm.key --socket first --read-only disk.img");
    let _two = place.serve("--key-file vm.key --socket second --read-only disk.img");
    place
        .run("serve --key-file vm.key --socket third disk.img")
        .fails(5, "disk.img is in use by another program");
}

#[test]
fn a_socket_in_use_is_not_taken_over() {
    let place = Place::with_volume();
    std::fs::copy(place.path("disk.img"), place.path("other.img")).unwrap();
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    let outcome = place.run("serve --key-file vm.key --socket s other.img");
    assert_eq!(outcome.code, 5, "{outcome:?}");
    assert!(outcome.stderr.contains("another server listens at"), "{outcome:?}");
    assert!(std::os::unix::net::UnixStream::connect(serving.socket()).is_ok());
}
