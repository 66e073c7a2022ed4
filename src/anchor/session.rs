//! [`Session`]: one mount's hold on an anchor.

use std::sync::{Arc, PoisonError};

use uuid::Uuid;

use crate::crypto::MacKey;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;

use super::Anchor;
use super::record::{AnchorMac, Record, SignedRecord};

/// An anchor whose record was read and verified. Every update names the record before it; after the
/// first that fails there is no other, because nobody knows what is kept then, or somebody else goes on
/// from another copy of the volume.
pub struct Session {
    anchor: Arc<dyn Anchor>,
    key: MacKey<AnchorMac>,
    state: Mutex<State>,
}

struct State {
    last: (Record, SignedRecord),
    poisoned: bool,
}

impl Session {
    /// Keeps the first record of a new volume. With the generation 0 it is a reservation, until the volume
    /// is finished and the anchor [advanced](Self::advance).
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when the anchor is in use.
    pub fn create(anchor: Arc<dyn Anchor>, key: MacKey<AnchorMac>, first: Record) -> Result<Self> {
        let signed = first.sign(&key)?;
        anchor.create(&signed)?;
        Ok(Self::new(anchor, key, (first, signed)))
    }

    /// Reads and verifies the record of the volume `uuid`. Whether the volume is as new as it says is
    /// the caller's to check ([`Record::check`]).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without a record, and those of [`SignedRecord::verify`].
    pub fn open(anchor: Arc<dyn Anchor>, key: MacKey<AnchorMac>, uuid: Uuid) -> Result<Self> {
        let signed = anchor.read()?;
        let record = signed.verify(uuid, &key)?;
        Ok(Self::new(anchor, key, (record, signed)))
    }

    fn new(anchor: Arc<dyn Anchor>, key: MacKey<AnchorMac>, last: (Record, SignedRecord)) -> Self {
        Self { anchor, key, state: Mutex::new(State { last, poisoned: false }) }
    }

    /// The record that is kept.
    pub fn last(&self) -> Record {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).last.0
    }

    /// Where it is kept, for messages.
    pub fn describe(&self) -> String {
        self.anchor.describe()
    }

    /// Moves the anchor on; durable on return. Nothing is done for the record that is kept already.
    ///
    /// # Errors
    /// [`ErrorKind::AnchorMismatch`] when somebody else has moved it, or what else the keeper reports;
    /// from then on always. [`ErrorKind::InvalidInput`] for a record that would go back.
    pub fn advance(&self, to: Record) -> Result<()> {
        self.advance_with(|_| to)
    }

    /// [`Self::advance`] to what `next` makes of the record that is kept, which nobody moves meanwhile.
    pub fn advance_with(&self, next: impl FnOnce(Record) -> Record) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, _) = state.last;
        let to = next(last);
        if (to.uuid, to.generation.min(last.generation), to.sequence.min(last.sequence))
            != (last.uuid, last.generation, last.sequence)
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("the anchor cannot go from {last} to {to}"),
            ));
        }
        self.swap(&mut state, to)
    }

    /// Moves the anchor to a state that its owner accepts in place of the one that is kept: a restored
    /// one. The new generation must be above both.
    ///
    /// # Errors
    /// As [`Self::advance`]; the sequence may go back.
    pub fn accept(&self, restored: Record) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, _) = state.last;
        if restored.uuid != last.uuid || restored.generation <= last.generation {
            let what = format!("the anchor cannot go from {last} to {restored}");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        tracing::warn!(anchored = %last, accepted = %restored, "a restored state is accepted");
        self.swap(&mut state, restored)
    }

    fn swap(&self, state: &mut State, to: Record) -> Result<()> {
        if state.poisoned {
            return Err(Error::new(ErrorKind::AnchorMismatch, "an earlier update of the anchor failed")
                .hint("look at the anchor, then restart the server"));
        }
        let (last, old) = state.last;
        if to == last {
            return Ok(());
        }
        let new = to.sign(&self.key)?;
        if let Err(error) = self.anchor.compare_and_swap(&old, &new) {
            tracing::error!(%error, anchor = self.anchor.describe(), "the anchor could not be moved");
            state.poisoned = true;
            return Err(error);
        }
        state.last = (to, new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretBytes;

    /// Keeps a record in memory, and fails when told to.
    #[derive(Default)]
    struct Memory {
        kept: Mutex<Option<SignedRecord>>,
        fails: Mutex<bool>,
    }

    impl Anchor for Memory {
        fn read(&self) -> Result<SignedRecord> {
            self.kept.lock().unwrap().ok_or_else(|| Error::new(ErrorKind::NotFound, "no record"))
        }
        fn create(&self, first: &SignedRecord) -> Result<()> {
            match self.kept.lock().unwrap().replace(*first) {
                None => Ok(()),
                Some(_) => Err(Error::new(ErrorKind::AlreadyExists, "a record")),
            }
        }
        fn compare_and_swap(&self, old: &SignedRecord, new: &SignedRecord) -> Result<()> {
            if *self.fails.lock().unwrap() {
                return Err(Error::new(ErrorKind::Io, "no answer"));
            }
            let mut kept = self.kept.lock().unwrap();
            if *kept != Some(*old) {
                return Err(Error::new(ErrorKind::AnchorMismatch, "another record"));
            }
            *kept = Some(*new);
            Ok(())
        }
        fn describe(&self) -> String {
            "memory".to_owned()
        }
    }

    const UUID: Uuid = Uuid::from_bytes([1; 16]);

    fn key() -> MacKey<AnchorMac> {
        MacKey::new(SecretBytes::copy_of(&[2; 32]).unwrap())
    }

    fn record(generation: u64, sequence: u64) -> Record {
        Record { uuid: UUID, generation, sequence, tag: [3; 16] }
    }

    fn session(anchor: &Arc<Memory>) -> Session {
        Session::create(Arc::clone(anchor) as _, key(), record(1, 0)).unwrap()
    }

    #[test]
    fn it_only_goes_forward() {
        let anchor = Arc::new(Memory::default());
        let session = session(&anchor);
        session.advance(record(1, 5)).unwrap();
        session.advance(record(1, 5)).unwrap();
        session.advance(record(2, 5)).unwrap();
        for back in [record(2, 4), record(1, 9), Record { uuid: Uuid::nil(), ..record(3, 9) }] {
            assert_eq!(session.advance(back).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(session.last(), record(2, 5));
        assert_eq!(Session::open(anchor, key(), UUID).unwrap().last(), record(2, 5));
    }

    #[test]
    fn a_restored_state_is_accepted_with_a_new_generation() {
        let anchor = Arc::new(Memory::default());
        let session = session(&anchor);
        session.advance(record(7, 100)).unwrap();
        assert_eq!(session.accept(record(7, 50)).unwrap_err().kind(), ErrorKind::InvalidInput);
        session.accept(record(7 + (1 << 32), 50)).unwrap();
        assert_eq!(session.last().sequence, 50);
    }

    /// Two servers with one anchor, and two copies of the volume: the second to move it stops for good.
    #[test]
    fn of_two_servers_one_stops() {
        let anchor = Arc::new(Memory::default());
        let one = session(&anchor);
        let two = Session::open(Arc::clone(&anchor) as _, key(), UUID).unwrap();
        one.advance(record(2, 0)).unwrap();
        assert_eq!(two.advance(record(2, 0)).unwrap_err().kind(), ErrorKind::AnchorMismatch);
        assert_eq!(two.advance(record(1, 0)).unwrap_err().kind(), ErrorKind::AnchorMismatch);
        one.advance(record(2, 1)).unwrap();
    }

    #[test]
    fn after_a_failure_there_is_no_update() {
        let anchor = Arc::new(Memory::default());
        let session = session(&anchor);
        *anchor.fails.lock().unwrap() = true;
        assert_eq!(session.advance(record(2, 0)).unwrap_err().kind(), ErrorKind::Io);
        *anchor.fails.lock().unwrap() = false;
        assert_eq!(session.advance(record(2, 0)).unwrap_err().kind(), ErrorKind::AnchorMismatch);
        assert_eq!(session.last(), record(1, 0));
    }

    #[test]
    fn an_anchor_that_is_in_use_or_missing_is_an_error() {
        let anchor = Arc::new(Memory::default());
        let open = || Session::open(Arc::clone(&anchor) as _, key(), UUID).err().map(|e| e.kind());
        assert_eq!(open(), Some(ErrorKind::NotFound));
        let _first = session(&anchor);
        let again = Session::create(Arc::clone(&anchor) as _, key(), record(1, 0));
        assert_eq!(again.err().unwrap().kind(), ErrorKind::AlreadyExists);
        assert_eq!(open(), None);
    }
}
