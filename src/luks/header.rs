//! A volume's header, of whichever version it is: the one place where the two are told apart.

use crate::backing::Backing;
use crate::crypto::CostLimits;
use crate::error::Result;
use crate::units::ByteCount;

use super::binary_header::version_at_start;
use super::check::luks1;
use super::layout::CheckedHeader;
use super::luks1_header::PartitionHeader;
use super::read::{RawHeader, read_start};

/// A header that is whole, of which nothing is known to be acceptable yet.
#[derive(Debug)]
pub enum Header {
    /// LUKS1: one copy, without a checksum.
    V1(PartitionHeader),
    /// LUKS2: the newest copy whose checksum is right.
    V2(RawHeader),
}

impl Header {
    /// Reads the header at the start of `backing`, once.
    ///
    /// # Errors
    /// [`WrongDevice`](crate::error::ErrorKind::WrongDevice) where nothing looks like LUKS,
    /// [`CorruptHeader`](crate::error::ErrorKind::CorruptHeader) when no copy is whole.
    pub fn read(backing: &dyn Backing) -> Result<Self> {
        Self::from_start(&read_start(backing)?)
    }

    /// Finds the header in a store's first bytes, of which 8 MiB are enough.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_start(bytes: &[u8]) -> Result<Self> {
        match version_at_start(bytes) {
            Some(1) => PartitionHeader::parse(bytes).map(Self::V1),
            _ => RawHeader::from_start(bytes).map(Self::V2),
        }
    }

    /// Says that the header lies in a store of its own, of `store` bytes, apart from the data: then the
    /// data may begin anywhere, and the key slots end with the header's store.
    #[must_use]
    pub fn kept_apart(mut self, store: ByteCount) -> Self {
        match &mut self {
            Self::V1(header) => header.apart = Some(store),
            Self::V2(header) => header.apart = Some(store),
        }
        self
    }

    /// Checks that the header asks for nothing but what this program does, and for nothing dangerous.
    ///
    /// # Errors
    /// [`Unsupported`](crate::error::ErrorKind::Unsupported) or
    /// [`CorruptHeader`](crate::error::ErrorKind::CorruptHeader), naming the field.
    pub fn check(self, limits: &CostLimits) -> Result<CheckedHeader> {
        match self {
            Self::V1(header) => {
                let layout = luks1::check(&header, limits)?;
                Ok(CheckedHeader::new(Self::V1(header), layout, *limits))
            }
            Self::V2(header) => header.check(limits),
        }
    }

    /// The LUKS version, 1 or 2.
    pub fn version(&self) -> u32 {
        match self {
            Self::V1(_) => 1,
            Self::V2(_) => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backing::MemoryBacking;
    use crate::block::{BlockDevice, BufferPool, Disk, Durability};
    use crate::crypto::{Hash, Kdf, KdfAlgorithm};
    use crate::env::OsEntropy;
    use crate::error::ErrorKind;
    use crate::luks::fixtures::{CHEAP, Golden, LUKS1, passphrase, volume};
    use crate::luks::keyslot::seal;
    use crate::luks::luks1_header::{ACTIVE, INACTIVE};
    use crate::luks::{Device, DeviceOptions, DiscardPolicy, UnlockPolicy, Unlocked};
    use crate::secret::{SecretBytes, VolumeKey};
    use crate::units::{BlockSize, ByteCount, ByteOffset};

    const LIMITS: CostLimits =
        CostLimits { memory_kib: 1 << 20, kib_passes: 1 << 22, lanes: 16, iterations: 1 << 20 };

    fn checked(store: &dyn Backing) -> CheckedHeader {
        Header::read(store).unwrap().check(&LIMITS).unwrap()
    }

    fn key_of(golden: &Golden) -> VolumeKey {
        VolumeKey::new(SecretBytes::copy_of(golden.key).unwrap())
    }

    fn open(store: &dyn Backing, text: &str, only: Option<u32>) -> Result<Option<u32>, ErrorKind> {
        checked(store).unlock(store, &passphrase(text), only).map(|u| u.key_slot()).map_err(|e| e.kind())
    }

    fn disk(store: MemoryBacking, unlocked: Unlocked) -> (Arc<MemoryBacking>, Disk, BufferPool) {
        let (store, pool) = (Arc::new(store), BufferPool::new(1 << 20));
        let options = DeviceOptions { read_only: false, discard: DiscardPolicy::Ignore };
        let device = Device::new(store.clone(), unlocked, options, pool.clone()).unwrap();
        (store, Disk::new(device), pool)
    }

    #[test]
    fn both_versions_are_told_apart() {
        assert_eq!(Header::read(&volume(BlockSize::B512)).unwrap().version(), 2);
        assert_eq!(Header::read(&LUKS1[0].store()).unwrap().version(), 1);
        let cut = Header::from_start(&LUKS1[0].file[..591]).unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::CorruptHeader, "{cut}");
        let none = Header::from_start(&LUKS1[0].file[1..]).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::WrongDevice, "{none}");
    }

    /// SHA-1 and SHA-512 with AES-128, whose key slots came along.
    #[test]
    fn luks1_volumes_of_others_open() {
        for golden in LUKS1.iter().filter(|golden| golden.opens_with_secret()) {
            let store = golden.store();
            let unlocked = checked(&store).unlock(&store, &passphrase("secret"), None).unwrap();
            assert!(unlocked.volume_key().expose() == golden.key, "{}", golden.uuid);
            assert_eq!((unlocked.key_slot(), unlocked.uuid().to_string().as_str()), (Some(0), golden.uuid));
            assert_eq!(open(&store, "Secret", None), Err(ErrorKind::WrongKey));
        }
    }

    /// The data of all, whose keys are known; cryptsetup's layout and QEMU's.
    #[test]
    fn the_data_of_luks1_volumes_is_right() {
        for golden in &LUKS1 {
            let store = golden.store();
            let unlocked = checked(&store).unlock_with_volume_key(&key_of(golden)).unwrap();
            let (store, disk, pool) = disk(store, unlocked);
            assert_eq!(disk.geometry().size, ByteCount(2048));
            assert_eq!(disk.geometry().block, BlockSize::B512);
            let mut plain = vec![0; 2048];
            disk.read(ByteOffset(0), &mut plain).unwrap();
            let expected: String = (0..4).map(|sector| format!("sector {sector:08} ").repeat(32)).collect();
            assert_eq!(String::from_utf8_lossy(&plain), expected, "{}", golden.uuid);

            // Writing what is there stores the same bytes; the rest of the store is not touched.
            disk.write(ByteOffset(512), pool.copy_of(&plain[512..1024]).unwrap(), Durability::Flush).unwrap();
            let mut stored = vec![0; 2048];
            store.read_at(ByteOffset(golden.payload * 512), &mut stored).unwrap();
            assert_eq!(stored, golden.file[golden.start..]);
        }
    }

    #[test]
    fn a_wrong_volume_key_does_not_open() {
        let store = LUKS1[0].store();
        for wrong in [vec![], vec![1; 32], LUKS1[2].key.to_vec(), LUKS1[0].key[..31].to_vec()] {
            let wrong = VolumeKey::new(SecretBytes::copy_of(&wrong).unwrap());
            let error = checked(&store).unlock_with_volume_key(&wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongKey);
        }
    }

    #[test]
    fn luks1_is_refused_where_an_authenticated_header_is_required() {
        let store = LUKS1[0].store();
        let policy = UnlockPolicy { require_authenticated_header: true, ..UnlockPolicy::default() };
        let error = checked(&store).unlock_with(&store, &passphrase("secret"), &policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("LUKS1"), "{error}");
        let policy = UnlockPolicy::default();
        let unlocked = checked(&store).unlock_with(&store, &passphrase("secret"), &policy).unwrap();
        assert!(!unlocked.header_is_authenticated());
        assert_eq!(checked(&store).luks2().unwrap_err().kind(), ErrorKind::Unsupported);
    }

    /// Puts a golden volume's key into more slots, 0 to 2, as another program would.
    fn with_slots(golden: &Golden, hash: Hash, iterations: [u32; 3]) -> MemoryBacking {
        let (store, mut header) = (golden.store(), golden.header());
        for (number, (slot, iterations)) in header.key_slots.iter_mut().zip(iterations).enumerate() {
            let cheap =
                Kdf { algorithm: KdfAlgorithm::Pbkdf2 { hash, iterations: 1000 }, salt: slot.salt.to_vec() };
            let phrase = passphrase(&format!("phrase {number}"));
            let material = seal(&key_of(golden), &phrase, &cheap, hash, &OsEntropy).unwrap();
            let at = u64::from(slot.key_material_offset) * 512;
            store.write_at(ByteOffset(at), material.expose()).unwrap();
            (slot.active, slot.iterations) = (ACTIVE, iterations);
        }
        store.write_at(ByteOffset(0), &header.to_bytes()).unwrap();
        store
    }

    #[test]
    fn each_luks1_slot_opens_with_its_passphrase() {
        assert_eq!(CHEAP, KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 });
        for (golden, hash) in [(&LUKS1[0], Hash::Sha1), (&LUKS1[2], Hash::Sha256), (&LUKS1[3], Hash::Sha256)]
        {
            let store = with_slots(golden, hash, [1000; 3]);
            for number in 0..3 {
                assert_eq!(open(&store, &format!("phrase {number}"), None), Ok(Some(number)));
            }
            assert_eq!(open(&store, "phrase 1", Some(1)), Ok(Some(1)));
            assert_eq!(open(&store, "phrase 1", Some(2)), Err(ErrorKind::WrongKey));
            assert_eq!(open(&store, "phrase 1", Some(3)), Err(ErrorKind::InvalidInput));

            // A slot that is not in use does not open, nor does one whose material was damaged.
            let mut header = golden.header();
            let Header::V1(now) = Header::read(&store).unwrap() else { panic!("LUKS2") };
            header.key_slots.clone_from(&now.key_slots);
            header.key_slots[1].active = INACTIVE;
            store.write_at(ByteOffset(0), &header.to_bytes()).unwrap();
            assert_eq!(open(&store, "phrase 1", None), Err(ErrorKind::WrongKey));
            store.write_at(ByteOffset(8 * 512 + 100_000), &[0; 16]).unwrap();
            assert_eq!(open(&store, "phrase 0", None), Err(ErrorKind::WrongKey));
            assert_eq!(open(&store, "phrase 2", None), Ok(Some(2)));
        }
    }

    /// The limit of one derivation holds for all slots tried, and the digest's costs count.
    #[test]
    fn trying_many_costly_luks1_slots_ends() {
        let digest = 1000;
        let most = u32::try_from(LIMITS.iterations).unwrap();
        let store = with_slots(&LUKS1[0], Hash::Sha1, [1000, most - 3 * digest - 1000, 1000]);
        assert_eq!(open(&store, "phrase 2", None), Err(ErrorKind::Unsupported));
        assert_eq!(open(&store, "phrase 2", Some(2)), Ok(Some(2)));
        let store = with_slots(&LUKS1[0], Hash::Sha1, [most - digest + 1, 1000, 1000]);
        assert_eq!(open(&store, "phrase 0", Some(0)), Err(ErrorKind::Unsupported));
    }

    #[test]
    fn key_material_that_the_store_does_not_have_is_an_error() {
        let golden = &LUKS1[0];
        let store = MemoryBacking::new(ByteCount(golden.start as u64 - 1));
        store.write_at(ByteOffset(0), &golden.file[..golden.start - 1]).unwrap();
        assert_eq!(open(&store, "secret", None), Err(ErrorKind::OutOfRange));
        let unlocked = checked(&store).unlock_with_volume_key(&key_of(golden)).unwrap();
        let options = DeviceOptions { read_only: false, discard: DiscardPolicy::Ignore };
        let error = Device::new(Arc::new(store), unlocked, options, BufferPool::new(0)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::CorruptHeader, "{error}");
    }

    /// With 32-bit tweaks, a volume may have 2^32 sectors: 2 TiB.
    #[test]
    fn the_mode_plain_ends_at_2_tib() {
        let golden = &LUKS1[0];
        let mut header = golden.header();
        header.cipher_mode[..10].copy_from_slice(b"xts-plain\0");
        let of_size = |sectors: u64| {
            let store = MemoryBacking::new(ByteCount((golden.payload + sectors) * 512));
            store.write_at(ByteOffset(0), &header.to_bytes()).unwrap();
            let unlocked = checked(&store).unlock_with_volume_key(&key_of(golden)).unwrap();
            let options = DeviceOptions { read_only: true, discard: DiscardPolicy::Ignore };
            let device = Device::new(Arc::new(store), unlocked, options, BufferPool::new(0));
            device.map(|device| device.geometry().size.0 / 512)
        };
        assert_eq!(of_size(1 << 32).unwrap(), 1 << 32);
        let error = of_size((1 << 32) + 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("xts-plain"), "{error}");
    }
}
