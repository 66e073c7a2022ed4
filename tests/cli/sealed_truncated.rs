//! Sealed volumes whose store was cut off: a damaged volume (exit code 4), wherever the end is.

use std::fs::File;

use crate::harness::Place;

const COMMANDS: [&str; 4] = [
    "check --key-file vm.key disk.img",
    "serve --key-file vm.key --socket s disk.img",
    "key test --key-file vm.key disk.img",
    "grow --size 2M --key-file vm.key disk.img",
];

/// What each command says of a store that ends after so many bytes.
fn refused(len: u64, sentence: &str, hint: &str, commands: &[&str]) {
    let place = Place::with_sealed_volume();
    File::options().write(true).open(place.path("disk.img")).unwrap().set_len(len).unwrap();
    let before = place.read("disk.img");
    for command in commands {
        let outcome = place.run(command);
        outcome.fails(4, sentence);
        assert!(outcome.stderr.contains(hint), "{outcome:?}");
        assert_eq!(place.read("disk.img"), before);
    }
}

#[test]
fn a_store_that_ends_before_its_superblocks_says_how_long_it_must_be() {
    let hint = "restore the file's full size from a backup";
    for (len, has) in [(4096, "4 KiB"), (12_288, "12 KiB"), (266_239, "259.99 KiB")] {
        let sentence =
            format!("the store has {has}, and the superblocks of a sealed volume alone need 260 KiB");
        refused(len, &sentence, hint, &COMMANDS);
    }
}
