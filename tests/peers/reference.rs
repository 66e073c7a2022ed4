//! A second opinion on what is stored: LUKS2's AES-256-XTS by crates that nothing of hostveil's
//! stands between, with the header as cryptsetup reads it.

use std::path::Path;

use aes::Aes256;
use aes::cipher::{Array, KeyInit, consts::U32};
use serde_json::Value;
use xts_mode::{Xts128, get_tweak_default};

use crate::harness::{Run, Volume, peer};

/// Where a volume's data lies, and how it is encrypted.
pub(crate) struct Layout {
    /// Bytes before the first sector of data.
    pub(crate) offset: u64,
    /// Bytes that are encrypted as one.
    pub(crate) sector_size: u64,
    /// As the header names it.
    pub(crate) encryption: String,
}

/// The header's metadata, as cryptsetup reads it.
pub(crate) fn metadata(disk: &Path) -> Value {
    let text = peer("cryptsetup").args(["luksDump", "--dump-json-metadata"]).arg(disk).run();
    serde_json::from_str(&text).unwrap()
}

/// The layout, as cryptsetup reads it.
pub(crate) fn layout(disk: &Path) -> Layout {
    let segment = &metadata(disk)["segments"]["0"];
    Layout {
        offset: segment["offset"].as_str().unwrap().parse().unwrap(),
        sector_size: segment["sector_size"].as_u64().unwrap(),
        encryption: segment["encryption"].as_str().unwrap().to_owned(),
    }
}

/// The volume key, as cryptsetup unwraps it.
pub(crate) fn volume_key(volume: &Volume) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("volume-key");
    peer("cryptsetup")
        .args(["luksDump", "--batch-mode", "--dump-volume-key", "--key-file"])
        .arg(&volume.key)
        .arg("--volume-key-file")
        .arg(&file)
        .arg(&volume.disk)
        .run();
    std::fs::read(file).unwrap()
}

/// What the disk holds, decrypted without hostveil.
pub(crate) fn decrypt(volume: &Volume) -> Vec<u8> {
    let layout = layout(&volume.disk);
    assert_eq!(layout.encryption, "aes-xts-plain64");
    let key = volume_key(volume);
    assert_eq!(key.len(), 64);
    let half = |bytes: &[u8]| Aes256::new(&Array::<u8, U32>::try_from(bytes).unwrap());
    let xts = Xts128::new(half(&key[..32]), half(&key[32..]));
    let stored = std::fs::read(&volume.disk).unwrap();
    let mut data = stored[usize::try_from(layout.offset).unwrap()..].to_vec();
    // The tweak counts units of 512 bytes, whatever a sector's size (LUKS2 On-Disk Format, 3.3).
    let mut unit = 0;
    for sector in data.chunks_exact_mut(usize::try_from(layout.sector_size).unwrap()) {
        xts.decrypt_sector(sector, get_tweak_default(unit));
        unit += u128::from(layout.sector_size / 512);
    }
    data
}
