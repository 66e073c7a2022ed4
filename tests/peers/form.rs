//! The forms that a volume can have, for tests that all of them must pass.

use std::path::Path;

use hostveil::anchor::{AnchorAddress, AnchorMode};
use hostveil::crypto::KdfAlgorithm;
use hostveil::env::{OsEntropy, Silent};
use hostveil::luks;
use hostveil::secret::{Passphrase, SecretBytes};
use hostveil::units::ByteCount;
use hostveil::volume::{self, CreateOptions, Format, SealedFormat, Target};

use crate::harness::{Run, Volume, hostveil};

/// The cheapest key derivation that a sealed volume's key slot can have; what the command line takes at
/// least would be most of a test's time.
const CHEAP: KdfAlgorithm = KdfAlgorithm::Argon2id { time: 1, memory_kib: 8, lanes: 1 };

/// What a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// LUKS2.
    Luks,
    /// Sealed, without an anchor.
    Sealed,
    /// Sealed, with a file as its anchor that follows before each flush is acknowledged.
    Anchored,
}

impl Form {
    /// A volume of `size` bytes in `place`, its key derivation a cheap one.
    pub(crate) fn make(self, place: &Path, size: u64) -> Volume {
        if self == Self::Luks {
            return Volume::format(place, size, &[]);
        }
        self.make_sealed(place, Volume::named(place, "disk.img"), Some(ByteCount(size)))
    }

    /// A volume that takes all of a device; what it needs beside that lies in `place`.
    pub(crate) fn make_on(self, device: &Path, place: &Path) -> Volume {
        let mut volume = Volume::named(place, "unused");
        device.clone_into(&mut volume.disk);
        if self == Self::Luks {
            volume.format_command(&[]).arg(device).run();
            return volume;
        }
        self.make_sealed(place, volume, None)
    }

    fn make_sealed(self, place: &Path, mut volume: Volume, size: Option<ByteCount>) -> Volume {
        volume.anchor = (self == Self::Anchored).then(|| place.join("anchor"));
        let anchor = volume.anchor.clone().map(|path| (AnchorAddress::File(path), AnchorMode::Strict));
        let options = CreateOptions {
            format: Format::Sealed(SealedFormat { anchor, ..SealedFormat::default() }),
            size,
            pbkdf: luks::Pbkdf::Exactly(CHEAP),
            preallocate: false,
            force: false,
        };
        let key = SecretBytes::copy_of(Volume::PASSPHRASE.as_bytes()).unwrap();
        let spot = volume::Place { disk: volume.disk.clone(), header: None };
        let target = Target::examine(&spot, &options).unwrap();
        volume::create(&target, &options, &Passphrase::new(key), &OsEntropy, &Silent).unwrap();
        volume
    }
}

impl Volume {
    /// Has `hostveil check` look at every block of a sealed volume.
    pub(crate) fn check(&self) {
        let mut command = hostveil();
        command.args(["check", "--data", "--key-file"]).arg(&self.key);
        command.args(self.anchor_address().iter().flat_map(|address| ["--anchor", address]));
        let said = command.arg(&self.disk).run();
        assert!(said.contains("The volume is whole"), "{said}");
    }
}
