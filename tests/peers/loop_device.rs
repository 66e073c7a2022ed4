//! A block device as the store: a loop device, which is one in all that matters.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::form::Form;
use crate::harness::{MIB, Run, Scratch, Volume, allocated, assert_same, hostveil, noise, peer};
use crate::privilege::{LoopDevice, as_root};
use crate::reference;

/// A device of 64 MiB with a volume on it that takes all of it.
fn formatted(place: &Scratch, sector_size: u32) -> (LoopDevice, Volume) {
    let file = place.join("device");
    std::fs::File::create(&file).unwrap().set_len(64 * MIB).unwrap();
    let device = LoopDevice::attach(&file, sector_size);
    let volume = Form::Luks.make_on(device.path(), place.path());
    (device, volume)
}

/// Writes, discards and flushes, of whole sectors of 512 bytes and of blocks; a kill; and another server.
/// What clients find is what they wrote, and the file under the device gets the discarded space back.
#[test]
fn every_form_on_a_device_keeps_what_clients_wrote() {
    for (form, sector_size) in
        [Form::Luks, Form::Sealed, Form::Anchored].iter().flat_map(|form| [(form, 512), (form, 4096)])
    {
        let place = Scratch::new();
        let file = place.join("device");
        std::fs::File::create(&file).unwrap().set_len(64 * MIB).unwrap();
        let device = LoopDevice::attach(&file, sector_size);
        let volume = form.make_on(device.path(), place.path());
        let server = volume.serve().arg("--discard").arg("unmap").start();
        let size = server.size();
        assert!(size > 30 * MIB && size < 64 * MIB, "{form:?}: {size}");
        let mut expected = noise(size, u64::from(sector_size));
        let data = place.file("data", &expected);
        peer("nbdcopy").args(["--connections=4", "--flush"]).arg(&data).arg(server.uri()).run();
        server.stop();

        let full = allocated(&file);
        let mut server = volume.serve().arg("--discard").arg("unmap").start();
        qemu_io(
            server.uri(),
            &["discard 8M 8M", "write -P 0x33 12M 1M", "write -P 0x44 20971008 1536", "flush"],
        );
        expected[index(12 * MIB)..index(13 * MIB)].fill(0x33);
        expected[20_971_008..20_972_544].fill(0x44);
        if *form == Form::Luks {
            // What a discard leaves there is the device's affair.
            server.signal("KILL");
            server.wait();
        } else {
            expected[index(8 * MIB)..index(12 * MIB)].fill(0);
            expected[index(13 * MIB)..index(16 * MIB)].fill(0);
            // The space of a sealed volume's discards comes back at a checkpoint, which a stop ends with.
            server.stop();
            let again = volume.serve().start();
            qemu_io(again.uri(), &["write -P 0x55 30M 64k", "flush"]);
            expected[index(30 * MIB)..index(30 * MIB) + 65_536].fill(0x55);
            again.signal("KILL");
            drop(again);
        }
        let freed = full.saturating_sub(allocated(&file));
        assert!(freed >= 5 * MIB, "{form:?} on sectors of {sector_size}: {freed} bytes came back");

        let server = volume.serve().arg("--read-only").start();
        let back = place.join("back");
        peer("nbdcopy").arg("--no-extents").arg(server.uri()).arg(&back).run();
        server.stop();
        let mut found = std::fs::read(&back).unwrap();
        if *form == Form::Luks {
            for range in [8 * MIB..12 * MIB, 13 * MIB..16 * MIB] {
                found[index(range.start)..index(range.end)]
                    .copy_from_slice(&expected[index(range.start)..index(range.end)]);
            }
        } else {
            volume.check();
        }
        assert_same(&place.file("found", &found), &place.file("expected", &expected));
    }
}

fn qemu_io(uri: &str, commands: &[&str]) {
    let mut command = peer("qemu-io");
    command.args(["-f", "raw", "-d", "unmap"]);
    command.args(commands.iter().flat_map(|command| ["-c", command])).arg(uri).run();
}

#[test]
fn a_sealed_volume_grows_with_its_device() {
    for sector_size in [512, 4096] {
        let place = Scratch::new();
        let file = place.join("device");
        std::fs::File::create(&file).unwrap().set_len(32 * MIB).unwrap();
        let device = LoopDevice::attach(&file, sector_size);
        let volume = Form::Anchored.make_on(device.path(), place.path());
        let server = volume.serve().start();
        let size = server.size();
        let data = place.noise("data", size);
        peer("nbdcopy").args(["--flush"]).arg(&data).arg(server.uri()).run();
        server.stop();
        std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(64 * MIB).unwrap();
        device.take_size_of_file();
        let mut grow = hostveil();
        grow.args(["grow", "--key-file"]).arg(&volume.key).arg("--anchor");
        grow.arg(volume.anchor_address().unwrap()).arg(device.path()).run();
        volume.check();
        let server = volume.serve().start();
        let grown = server.size();
        assert!(grown > size + 24 * MIB && grown < 64 * MIB, "{size}, then {grown}");
        let mut client = Client::connect(&server);
        let first = client.read(0, 512).unwrap();
        assert!(first == std::fs::read(&data).unwrap()[..512]);
        client.write(grown - 512, &noise(512, 9), 0).unwrap();
        client.flush().unwrap();
        drop(client);
        server.stop();
        let back = place.join("back");
        let server = volume.serve().arg("--read-only").start();
        peer("nbdcopy").arg(server.uri()).arg(&back).run();
        server.stop();
        let found = std::fs::read(&back).unwrap();
        assert!(found[..index(size)] == std::fs::read(&data).unwrap());
        assert!(found[index(size)..index(grown) - 512].iter().all(|byte| *byte == 0));
        assert!(found[index(grown) - 512..] == noise(512, 9));
    }
}

#[test]
fn a_device_is_formatted_and_served_whole() {
    for sector_size in [512, 4096] {
        let place = Scratch::new();
        let (_device, volume) = formatted(&place, sector_size);
        let size = 64 * MIB - reference::layout(&volume.disk).offset;
        let data = place.noise("data", size);
        let server = volume.serve().start();
        assert_eq!(server.size(), size);
        peer("nbdcopy").arg(&data).arg(server.uri()).run();
        let mut client = Client::connect(&server);
        client.write(size - 512, &noise(512, 7), 0).unwrap();
        client.flush().unwrap();
        server.stop();

        let server = volume.serve().start();
        assert_eq!(Client::connect(&server).read(size - 512, 512).unwrap(), noise(512, 7));
        Client::connect(&server)
            .write(size - 512, &std::fs::read(&data).unwrap()[index(size) - 512..], 0)
            .unwrap();
        let back = place.join("back");
        peer("nbdcopy").arg(server.uri()).arg(&back).run();
        assert_same(&data, &back);
        server.stop();
        assert_same(&data, &place.file("decrypted", &reference::decrypt(&volume)));
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

#[test]
fn a_device_in_use_is_refused() {
    let place = Scratch::new();
    let (_device, volume) = formatted(&place, 512);
    let server = volume.serve().start();
    assert_eq!(volume.serve().refused().code, 5);
    assert_eq!(volume.format_command(&["--force"]).arg(&volume.disk).fail().code, 5);
    // The kernel keeps others off as well: whoever mounts a device opens it exclusively.
    let mut exclusively = std::fs::OpenOptions::new();
    exclusively.read(true).custom_flags(libc::O_EXCL);
    assert_eq!(exclusively.open(&volume.disk).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    server.stop();

    let user = exclusively.open(&volume.disk).unwrap();
    let refused = volume.serve().refused();
    assert_eq!(refused.code, 5, "{refused:?}");
    assert_eq!(volume.format_command(&["--force"]).arg(&volume.disk).fail().code, 5);
    drop(user);
    volume.serve().start().stop();
}

#[test]
fn a_device_with_something_on_it_is_not_formatted_by_accident() {
    let place = Scratch::new();
    let (_device, volume) = formatted(&place, 512);
    let before = peer("cryptsetup").arg("luksUUID").arg(&volume.disk).run();
    assert_eq!(volume.format_command(&[]).arg(&volume.disk).fail().code, 5);
    assert_eq!(peer("cryptsetup").arg("luksUUID").arg(&volume.disk).run(), before);
    volume.format_command(&["--force"]).arg(&volume.disk).run();
    assert_ne!(peer("cryptsetup").arg("luksUUID").arg(&volume.disk).run(), before);
}

/// The devices that hold a file, as `losetup` lists them.
fn attached(file: &Path) -> String {
    as_root("losetup").arg("-j").arg(file).run()
}

/// What the tests here leave behind when they fail: nothing.
#[test]
fn a_device_goes_away_with_a_test_that_fails() {
    let place = Scratch::new();
    let file = place.noise("device", MIB);
    let failed = std::panic::catch_unwind(|| {
        let device = LoopDevice::attach(&file, 512);
        assert_eq!(attached(&file), "", "{} fails on purpose", device.path().display());
    });
    let message = failed.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("/dev/loop"), "it was attached: {message}");
    until_detached(&file);
}

/// Nor when they are killed. This test is two processes: the second has a device, until the first kills it.
#[test]
fn a_device_goes_away_with_a_test_that_is_killed() {
    const FILE: &str = "HOSTVEIL_TEST_DEVICE";
    if let Some(file) = std::env::var_os(FILE).map(PathBuf::from) {
        let device = LoopDevice::attach(&file, 512);
        println!("\nattached: {}", device.path().display());
        std::io::stdin().read_line(&mut String::new()).unwrap();
        return;
    }
    let place = Scratch::new();
    let file = place.noise("device", MIB);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "loop_device::a_device_goes_away_with_a_test_that_is_killed"]);
    let mut child = command.env(FILE, &file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<_> = lines.take_while(|line| !line.starts_with("attached: ")).collect();
    let before = attached(&file);
    // Its input ends with it: a second process that is not killed would end well.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(before.starts_with("/dev/loop"), "it was not attached: {before:?}, {said:?}");
    until_detached(&file);
}

/// Waits until no device holds a file: somebody else may have looked at one, and closes it last.
fn until_detached(file: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !attached(file).is_empty() {
        assert!(Instant::now() < deadline, "still attached: {}", attached(file));
        std::thread::sleep(Duration::from_millis(20));
    }
}
