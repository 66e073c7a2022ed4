//! Managing a sealed volume that nobody uses: its key slots and its header's copies.

use std::sync::Arc;

use crate::anchor::{Anchor, AnchorAddress};
use crate::backing::{Backing, FileBacking};
use crate::crypto::CostLimits;
use crate::env::{Entropy, Progress};
use crate::error::Result;
use crate::luks::{Pbkdf, Repaired};
use crate::sealed::{self, CheckedHeader, CopyPlace, HeaderPin, NewSlot, RawHeader, SlotSecret, Unlocked};
use crate::secret::Passphrase;

use super::create_sealed::argon2id;
use super::open_sealed;

/// A sealed volume's store, locked, and its header. Each change unlocks the header that is there by then.
pub(super) struct ManagedSealed {
    store: FileBacking,
    header: CheckedHeader,
    limits: CostLimits,
    anchor: Option<AnchorAddress>,
}

impl ManagedSealed {
    pub(super) fn at(store: FileBacking, limits: &CostLimits, anchor: Option<AnchorAddress>) -> Result<Self> {
        let header = RawHeader::read(&store).check(limits)?;
        Ok(Self { store, header, limits: *limits, anchor })
    }

    pub(super) fn header(&self) -> &CheckedHeader {
        &self.header
    }

    pub(super) fn unlock(&self, passphrase: &Passphrase, only: Option<u32>) -> Result<Unlocked> {
        open_sealed::unlock(&self.header, &self.store, passphrase, only).map(|(unlocked, _)| unlocked)
    }

    pub(super) fn add(
        &mut self,
        unlocked: &mut Unlocked,
        (passphrase, pbkdf, number): (&Passphrase, Pbkdf, Option<u32>),
        (entropy, progress): (&dyn Entropy, &dyn Progress),
    ) -> Result<u32> {
        let anchor = self.anchor_of(unlocked)?;
        let new = NewSlot { secret: SlotSecret::Passphrase(passphrase), kdf: argon2id(pbkdf)?, number };
        let keys = unlocked.derive_keys()?;
        let pin = &mut |pin: &HeaderPin| sealed::pin_header(&self.store, &keys, anchor.clone(), pin);
        let number = unlocked.add(&self.store, &new, pin, (entropy, progress))?;
        self.read_again()?;
        Ok(number)
    }

    pub(super) fn change(
        &mut self,
        unlocked: &mut Unlocked,
        (passphrase, pbkdf): (&Passphrase, Pbkdf),
        (entropy, progress): (&dyn Entropy, &dyn Progress),
    ) -> Result<()> {
        let anchor = self.anchor_of(unlocked)?;
        let new = NewSlot { secret: SlotSecret::Passphrase(passphrase), kdf: argon2id(pbkdf)?, number: None };
        let keys = unlocked.derive_keys()?;
        let pin = &mut |pin: &HeaderPin| sealed::pin_header(&self.store, &keys, anchor.clone(), pin);
        unlocked.change(&self.store, &new, pin, (entropy, progress))?;
        self.read_again()
    }

    pub(super) fn remove(&mut self, unlocked: &mut Unlocked, number: u32) -> Result<()> {
        let anchor = self.anchor_of(unlocked)?;
        let keys = unlocked.derive_keys()?;
        let pin = &mut |pin: &HeaderPin| sealed::pin_header(&self.store, &keys, anchor.clone(), pin);
        unlocked.remove(&self.store, number, pin)?;
        self.read_again()
    }

    pub(super) fn erase_all(&mut self) -> Result<()> {
        sealed::erase_all(&self.store)?;
        self.read_again()
    }

    pub(super) fn repair(&mut self, unlocked: &mut Unlocked) -> Result<Repaired> {
        let repaired = match unlocked.repair(&self.store)? {
            None => Repaired::Nothing,
            Some(CopyPlace::A) => Repaired::First,
            Some(CopyPlace::B) => Repaired::Second,
        };
        self.read_again()?;
        Ok(repaired)
    }

    /// The anchor that must move with the header.
    fn anchor_of(&self, unlocked: &Unlocked) -> Result<Option<Arc<dyn Anchor>>> {
        open_sealed::expect_anchor(unlocked.anchor_mode(), self.anchor.as_ref())?;
        self.anchor.as_ref().map(AnchorAddress::open).transpose()
    }

    fn read_again(&mut self) -> Result<()> {
        self.header = RawHeader::read(&self.store as &dyn Backing).check(&self.limits)?;
        Ok(())
    }
}
