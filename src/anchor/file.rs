//! [`FileAnchor`]: an anchor in a file.
//!
//! The file is replaced, never written into: under a lock, the new record goes to a temporary file beside
//! it, which is synced and then renamed over it, and the directory is synced. So the file holds a whole
//! record at every moment, and the new one when an update has returned. It is of use where the host of
//! the volume cannot put it back: on a machine of the tenant's.
//!
//! Only the record's own file counts. The lock (`.lock`) and the temporary file (`.new`) may be left
//! over from a crash, or be anything that somebody put there; they are never read. Nothing here follows a
//! symbolic link in place of one of these files.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

use super::directory::{Directory, Names};
use super::{Anchor, RECORD_LEN, SignedRecord};

/// An anchor in a file.
pub struct FileAnchor(RecordFile<Directory>);

/// A record's file in a directory of some kind.
struct RecordFile<D> {
    directory: D,
    name: OsString,
    path: PathBuf,
}

impl FileAnchor {
    /// The anchor at `path`, which may not exist yet; its directory must.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a path without a file's name; what opening the directory may fail
    /// with.
    pub fn at(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| {
            let what = format!("{} is not a file's name", path.display());
            Error::new(ErrorKind::InvalidInput, what)
        })?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = Directory::open(parent.unwrap_or(Path::new(".")))?;
        Ok(Self(RecordFile { directory, name: name.to_owned(), path: path.to_owned() }))
    }
}

impl Anchor for FileAnchor {
    fn read(&self) -> Result<SignedRecord> {
        self.0.read()
    }

    fn create(&self, first: &SignedRecord) -> Result<()> {
        self.0.create(first)
    }

    fn compare_and_swap(&self, old: &SignedRecord, new: &SignedRecord) -> Result<()> {
        self.0.compare_and_swap(old, new)
    }

    fn describe(&self) -> String {
        format!("file:{}", self.0.path.display())
    }
}

impl<D: Names> RecordFile<D> {
    fn read(&self) -> Result<SignedRecord> {
        self.kept()?.ok_or_else(|| self.missing())
    }

    fn create(&self, first: &SignedRecord) -> Result<()> {
        let _lock = self.directory.lock(&self.beside(".lock"))?;
        let unfinished =
            |kept: Result<_>| matches!(kept, Ok(Some(kept)) if SignedRecord::is_reservation(&kept));
        if self.directory.exists(&self.name)? && !unfinished(self.kept()) {
            let what = format!("{} exists already", self.path.display());
            return Err(Error::new(ErrorKind::AlreadyExists, what)
                .hint("every volume needs an anchor of its own; choose another name"));
        }
        self.replace(first)
    }

    fn compare_and_swap(&self, old: &SignedRecord, new: &SignedRecord) -> Result<()> {
        let _lock = self.directory.lock(&self.beside(".lock"))?;
        if self.kept()?.ok_or_else(|| self.missing())? != *old {
            let what = format!("somebody else has moved the anchor {}", self.path.display());
            return Err(Error::new(ErrorKind::AnchorMismatch, what)
                .hint("another server serves a copy of this volume; stop one of them and look at both"));
        }
        self.replace(new)
    }

    fn beside(&self, suffix: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(OsStr::new(suffix));
        name
    }

    fn kept(&self) -> Result<Option<SignedRecord>> {
        let Some(bytes) = self.directory.read(&self.name, RECORD_LEN + 1)? else { return Ok(None) };
        let len = bytes.len();
        let bytes = <[u8; RECORD_LEN]>::try_from(bytes).map_err(|_| {
            let what =
                format!("{} has not the {RECORD_LEN} bytes of an anchor's record", self.path.display());
            Error::new(ErrorKind::WrongDevice, if len > RECORD_LEN { what + ", but more" } else { what })
        })?;
        Ok(Some(SignedRecord::from_bytes(bytes)))
    }

    /// The caller holds the lock.
    fn replace(&self, new: &SignedRecord) -> Result<()> {
        let temporary = self.beside(".new");
        self.directory.remove(&temporary)?;
        self.directory.create_synced(&temporary, new.bytes())?;
        self.directory.rename(&temporary, &self.name)?;
        self.directory.sync()
    }

    fn missing(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("there is no anchor at {}", self.path.display())).hint(
            "without its anchor nobody can tell whether the volume is the latest; name the right file, or put it back",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::Mutex;

    fn record(byte: u8) -> SignedRecord {
        SignedRecord::from_bytes([byte; RECORD_LEN])
    }

    fn anchor() -> (tempfile::TempDir, PathBuf, FileAnchor) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.anchor");
        let anchor = FileAnchor::at(&path).unwrap();
        (directory, path, anchor)
    }

    fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
        result.err().map(|e| e.kind())
    }

    #[test]
    fn a_record_is_kept_and_replaced() {
        let (_directory, path, anchor) = anchor();
        assert_eq!(kind(anchor.read()), Some(ErrorKind::NotFound));
        assert_eq!(kind(anchor.compare_and_swap(&record(1), &record(2))), Some(ErrorKind::NotFound));
        anchor.create(&record(1)).unwrap();
        assert_eq!(kind(anchor.create(&record(1))), Some(ErrorKind::AlreadyExists));
        assert_eq!(anchor.read().unwrap(), record(1));
        anchor.compare_and_swap(&record(1), &record(2)).unwrap();
        assert_eq!(kind(anchor.compare_and_swap(&record(1), &record(3))), Some(ErrorKind::AnchorMismatch));
        assert_eq!(anchor.read().unwrap(), record(2));
        assert_eq!(std::fs::read(&path).unwrap(), [2; RECORD_LEN]);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(anchor.describe(), format!("file:{}", path.display()));
    }

    /// A format that was cut off leaves its anchor, for the next one to take; it was nobody's.
    #[test]
    fn a_reservation_gives_way_and_nothing_else_does() {
        let (_directory, path, anchor) = anchor();
        let key = crate::crypto::MacKey::new(crate::secret::SecretBytes::copy_of(&[2; 32]).unwrap());
        let signed = |generation| {
            let record =
                super::super::Record { uuid: uuid::Uuid::nil(), generation, sequence: 0, tag: [0; 16] };
            record.sign(&key).unwrap()
        };
        anchor.create(&signed(0)).unwrap();
        anchor.create(&record(7)).unwrap();
        assert_eq!(anchor.read().unwrap(), record(7));
        for in_use in [*signed(1).bytes(), *signed(1 << 56).bytes(), [0; RECORD_LEN]] {
            std::fs::write(&path, in_use).unwrap();
            assert_eq!(kind(anchor.create(&record(8))), Some(ErrorKind::AlreadyExists));
            assert_eq!(std::fs::read(&path).unwrap(), in_use);
        }
    }

    /// Many servers at once, each trying to move the anchor on: every step is won by one of them.
    #[test]
    fn of_many_servers_one_wins() {
        let (_directory, path, anchor) = anchor();
        anchor.create(&record(0)).unwrap();
        for step in 0..20 {
            let wins = Mutex::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let own = FileAnchor::at(&path).unwrap();
                        match own.compare_and_swap(&record(step), &record(step + 1)) {
                            Ok(()) => *wins.lock().unwrap() += 1,
                            Err(e) => assert_eq!(e.kind(), ErrorKind::AnchorMismatch, "{e}"),
                        }
                    });
                }
            });
            assert_eq!(wins.into_inner().unwrap(), 1);
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let (_directory, path, anchor) = anchor();
        for hostile in [vec![], vec![0; RECORD_LEN - 1], vec![0; RECORD_LEN + 1], vec![0; 1 << 20]] {
            std::fs::write(&path, &hostile).unwrap();
            assert_eq!(kind(anchor.read()), Some(ErrorKind::WrongDevice));
            assert_eq!(kind(anchor.compare_and_swap(&record(1), &record(2))), Some(ErrorKind::WrongDevice));
            assert_eq!(kind(anchor.create(&record(1))), Some(ErrorKind::AlreadyExists));
            assert_eq!(std::fs::read(&path).unwrap(), hostile, "nothing is overwritten");
        }
    }

    #[test]
    fn links_pipes_and_directories_are_refused() {
        let (directory, path, anchor) = anchor();
        let target = directory.path().join("target");
        std::fs::write(&target, [1; RECORD_LEN]).unwrap();
        symlink(&target, &path).unwrap();
        assert!(kind(anchor.read()).is_some(), "a link");
        assert_eq!(kind(anchor.create(&record(1))), Some(ErrorKind::AlreadyExists));
        std::fs::remove_file(&target).unwrap();
        assert!(kind(anchor.read()).is_some_and(|kind| kind != ErrorKind::NotFound), "a dangling link");
        assert_eq!(kind(anchor.create(&record(1))), Some(ErrorKind::AlreadyExists));
        assert!(!target.exists());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(kind(anchor.read()), Some(ErrorKind::WrongDevice));
        std::fs::remove_dir(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert_eq!(kind(anchor.read()), Some(ErrorKind::WrongDevice));
    }

    /// What lies at the names beside the record does not lead writes elsewhere.
    #[test]
    fn links_beside_it_lead_nowhere() {
        let (directory, path, anchor) = anchor();
        anchor.create(&record(1)).unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, b"precious").unwrap();
        symlink(&victim, path.with_extension("anchor.new")).unwrap();
        anchor.compare_and_swap(&record(1), &record(2)).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
        std::fs::remove_file(path.with_extension("anchor.lock")).unwrap();
        symlink(&victim, path.with_extension("anchor.lock")).unwrap();
        assert!(anchor.compare_and_swap(&record(2), &record(3)).is_err());
        assert_eq!(anchor.read().unwrap(), record(2));
    }

    #[test]
    fn permissions_do_not_depend_on_the_umask_or_on_leftovers() {
        let (_directory, path, anchor) = anchor();
        anchor.create(&record(1)).unwrap();
        let temporary = path.with_extension("anchor.new");
        std::fs::write(&temporary, b"left over").unwrap();
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o666)).unwrap();
        anchor.compare_and_swap(&record(1), &record(2)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert!(!temporary.exists());
    }

    #[test]
    fn a_path_without_a_name_or_directory_is_refused() {
        assert_eq!(kind(FileAnchor::at(Path::new("/"))), Some(ErrorKind::InvalidInput));
        assert_eq!(kind(FileAnchor::at(Path::new(".."))), Some(ErrorKind::InvalidInput));
        assert_eq!(kind(FileAnchor::at(Path::new("/nowhere/at/all"))), Some(ErrorKind::NotFound));
    }

    /// A directory in memory that forgets what was not made durable: a name's last change until the
    /// directory is synced, and a file's bytes until it is.
    #[derive(Clone, Default)]
    struct Model {
        now: BTreeMap<OsString, (Vec<u8>, bool)>,
        durable: BTreeMap<OsString, (Vec<u8>, bool)>,
    }

    /// Does so many steps, and then none: the power went out.
    struct Failing {
        model: Mutex<Model>,
        steps: Mutex<usize>,
    }

    impl Failing {
        fn step(&self) -> Result<std::sync::MutexGuard<'_, Model>> {
            let mut steps = self.steps.lock().unwrap();
            *steps = steps.checked_sub(1).ok_or_else(|| Error::new(ErrorKind::Io, "no power"))?;
            Ok(self.model.lock().unwrap())
        }
    }

    impl Names for Failing {
        type Lock = ();
        fn lock(&self, _name: &OsStr) -> Result<()> {
            Ok(())
        }
        fn exists(&self, name: &OsStr) -> Result<bool> {
            Ok(self.step()?.now.contains_key(name))
        }
        fn read(&self, name: &OsStr, _most: usize) -> Result<Option<Vec<u8>>> {
            Ok(self.step()?.now.get(name).map(|(bytes, _)| bytes.clone()))
        }
        fn create_synced(&self, name: &OsStr, bytes: &[u8]) -> Result<()> {
            self.step()?.now.insert(name.to_owned(), (bytes.to_vec(), false));
            self.step()?.now.insert(name.to_owned(), (bytes.to_vec(), true));
            Ok(())
        }
        fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
            let mut model = self.step()?;
            let file = model.now.remove(from).unwrap();
            model.now.insert(to.to_owned(), file);
            Ok(())
        }
        fn remove(&self, name: &OsStr) -> Result<()> {
            self.step()?.now.remove(name);
            Ok(())
        }
        fn sync(&self) -> Result<()> {
            let mut model = self.step()?;
            model.durable = model.now.clone();
            Ok(())
        }
    }

    fn failing(model: &Model, steps: usize) -> RecordFile<Failing> {
        let directory = Failing { model: Mutex::new(model.clone()), steps: Mutex::new(steps) };
        RecordFile { directory, name: "a".into(), path: "a".into() }
    }

    /// Whatever a crash keeps of what was not durable, the record is the old or the new one, the new one
    /// after a success, and the next update goes on from it.
    #[test]
    fn an_update_may_crash_at_every_step() {
        let start = failing(&Model::default(), 100);
        start.create(&record(1)).unwrap();
        let start = start.directory.model.into_inner().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for steps in 0..20 {
            let crashing = failing(&start, steps);
            let done = crashing.compare_and_swap(&record(1), &record(2)).is_ok();
            let model = crashing.directory.model.into_inner().unwrap();
            for survivor in [&model.now, &model.durable] {
                let torn = survivor.iter().map(|(name, (bytes, synced))| {
                    let kept = if *synced { bytes.len() } else { bytes.len() / 2 };
                    (name.clone(), (bytes[..kept].to_vec(), true))
                });
                let files: BTreeMap<_, _> = torn.collect();
                let after = failing(&Model { now: files.clone(), durable: files }, 100);
                let kept = after.read().unwrap();
                assert!(kept == record(2) || (kept == record(1) && !done), "after {steps} steps");
                seen.insert(kept.bytes()[0]);
                after.compare_and_swap(&kept, &record(3)).unwrap();
                assert_eq!(after.read().unwrap(), record(3));
            }
        }
        assert_eq!(seen.len(), 2);
    }
}
