//! A block device as the store: a loop device, which is one in all that matters.

use std::os::unix::fs::OpenOptionsExt;

use crate::client::Client;
use crate::harness::{MIB, Run, Scratch, Volume, assert_same, noise, peer};
use crate::privilege::LoopDevice;
use crate::reference;

/// A device of 64 MiB with a volume on it that takes all of it.
fn formatted(place: &Scratch, sector_size: u32) -> (LoopDevice, Volume) {
    let file = place.join("device");
    std::fs::File::create(&file).unwrap().set_len(64 * MIB).unwrap();
    let device = LoopDevice::attach(&file, sector_size);
    let mut volume = Volume::named(place.path(), "unused");
    device.path().clone_into(&mut volume.disk);
    volume.format_command(&[]).arg(device.path()).run();
    (device, volume)
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
