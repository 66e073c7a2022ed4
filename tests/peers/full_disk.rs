//! The file system under a volume is full, or read-only.

use crate::client::{Client, FUA};
use crate::harness::{MIB, Run, Volume, hostveil, noise};
use crate::privilege::SmallFileSystem;

const ENOSPC: u32 = 28;
const EPERM: u32 = 1;
const PIECE: u64 = MIB;

#[test]
fn a_full_disk_is_told_and_survived() {
    let place = SmallFileSystem::mount(96 * MIB);
    let volume = Volume::format(place.path(), 256 * MIB, &[]);
    let filler = place.path().join("filler");
    std::fs::write(&filler, vec![1; 32 << 20]).unwrap();
    let mut server = volume.serve().start();
    let mut client = Client::connect(&server);

    let refused =
        (0..256).find(|n| write_piece(&mut client, *n).is_err()).expect("the disk never became full");
    assert!(refused > 16, "full after {refused} MiB already");
    assert_eq!(write_piece(&mut client, refused), Err(ENOSPC));
    assert_eq!(client.write(255 * PIECE, &noise(4096, 3), FUA), Err(ENOSPC));
    // It lives, and reads what it had taken, for this client and for others.
    for n in 0..refused {
        assert!(client.read(n * PIECE, piece()).unwrap() == noise(PIECE, n), "MiB {n}");
    }
    assert!(Client::connect(&server).read(0, piece()).unwrap() == noise(PIECE, 0));
    // What has its place already can be written.
    write_piece(&mut client, 0).unwrap();
    client.flush().unwrap();
    assert!(server.lives());

    std::fs::remove_file(&filler).unwrap();
    write_piece(&mut client, refused).unwrap();
    client.flush().unwrap();
    assert!(client.read(refused * PIECE, piece()).unwrap() == noise(PIECE, refused));
    server.stop();
}

fn write_piece(client: &mut Client, n: u64) -> Result<(), u32> {
    client.write(n * PIECE, &noise(PIECE, n), 0)
}

fn piece() -> u32 {
    u32::try_from(PIECE).unwrap()
}

#[test]
fn a_disk_without_room_is_not_preallocated() {
    let place = SmallFileSystem::mount(32 * MIB);
    let volume = Volume::named(place.path(), "disk.img");
    let failure = volume.format_command(&["--size", "64M", "--preallocate"]).arg(&volume.disk).fail();
    assert_eq!(failure.code, 6, "{failure:?}");
    assert!(!volume.disk.exists(), "a failed format left something behind");
}

#[test]
fn a_read_only_file_system_is_served_read_only_alone() {
    let place = SmallFileSystem::mount(64 * MIB);
    let volume = Volume::format(place.path(), 24 * MIB, &[]);
    let server = volume.serve().start();
    Client::connect(&server).write(4096, &noise(4096, 5), 0).unwrap();
    server.stop();
    place.make_read_only();

    let refused = volume.serve().refused();
    assert_eq!(refused.code, 6, "{refused:?}");
    assert!(refused.text.to_lowercase().contains("read-only file system"), "{refused:?}");
    let server = volume.serve().arg("--read-only").start();
    let mut client = Client::connect(&server);
    assert!(client.read(4096, 4096).unwrap() == noise(4096, 5));
    assert_eq!(client.write(4096, &noise(4096, 6), 0), Err(EPERM));
    assert!(client.read(4096, 4096).unwrap() == noise(4096, 5));
    server.stop();
    hostveil().arg("inspect").arg(&volume.disk).run();
}
