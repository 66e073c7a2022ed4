//! A wrong key: exit code 2, and the disk as it was.

use crate::harness::Place;

#[test]
fn a_wrong_key_file_is_said_plainly() {
    let place = Place::with_volume();
    let before = place.read("disk.img");
    place.file("wrong.key", b"another key's bytes");
    let outcome = place.run("serve --key-file wrong.key --socket s disk.img");
    outcome.fails(2, "no key slot opens with this passphrase or key file");
    assert_eq!(place.read("disk.img"), before);
    assert_eq!(place.names(), ["disk.img", "vm.key", "wrong.key"], "no socket stays behind");
}

#[test]
fn a_trailing_newline_makes_another_key() {
    let place = Place::with_volume();
    let key = [crate::harness::KEY, b"\n"].concat();
    let outcome = place.run_with_input("serve --key-file - --socket s disk.img", &key);
    outcome.fails(2, "no key slot opens with this passphrase or key file");
}
