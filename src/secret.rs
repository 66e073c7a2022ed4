//! Secrets in memory: passphrases, key files' contents and volume keys.
//!
//! Guaranteed: a secret lies in locked memory that no core dump contains (`sys::SecretPages`), is
//! zeroed when dropped (and its pages may then hold the next one), has no `Clone` and no `Debug` that shows it, and is compared in constant
//! time. Not guaranteed: that the operating system allowed the locking (a warning is logged once),
//! and nothing about what a cipher leaves on the stack and in registers. A cipher's key schedule lies in
//! that cipher's memory, which [`lock_in_place`] locks and the cipher zeroes.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::SecretPages;

/// Zeroed and locked pages that nobody uses. Most secrets are keys of 32 bytes, and mapping, locking and
/// unmapping a page for each costs far more than deriving it does: an unmapping interrupts every core.
static SPARE: Mutex<Vec<SecretPages>> = Mutex::new(Vec::new());
/// So many are kept, of secrets of at most [`SMALL`] bytes: each counts against the limit of locked memory.
const MAX_SPARE: usize = 32;
/// No page is smaller.
const SMALL: usize = 4096;

/// Secret bytes of a fixed length.
pub struct SecretBytes {
    pages: SecretPages,
}

impl SecretBytes {
    /// `len` zero bytes, to be filled in.
    pub fn zeroed(len: usize) -> Result<Self> {
        let pages = spare_pages(len)
            .map_or_else(|| SecretPages::new(len), Ok)
            .map_err(|e| Error::new(ErrorKind::OutOfMemory, "no memory for a secret").because(e))?;
        if !pages.is_locked() {
            warn_unlocked();
        }
        Ok(Self { pages })
    }

    /// A copy of `bytes`, whose original the caller should zero.
    pub fn copy_of(bytes: &[u8]) -> Result<Self> {
        let mut secret = Self::zeroed(bytes.len())?;
        secret.expose_mut().copy_from_slice(bytes);
        Ok(secret)
    }

    /// Fresh random bytes.
    pub fn random(len: usize, entropy: &dyn Entropy) -> Result<Self> {
        let mut secret = Self::zeroed(len)?;
        entropy.fill(secret.expose_mut())?;
        Ok(secret)
    }

    /// The first `len` bytes, moved into a secret of their own; `self` is zeroed.
    pub fn truncated(self, len: usize) -> Result<Self> {
        Self::copy_of(&self.expose()[..len.min(self.len())])
    }

    /// The bytes. Every call is a place where a secret may get out.
    pub fn expose(&self) -> &[u8] {
        self.pages.bytes()
    }

    /// The bytes, to be changed.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        self.pages.bytes_mut()
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.pages.bytes().len()
    }

    /// Whether there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether both hold the same bytes, in time that depends on the lengths only.
    pub fn equals(&self, other: &[u8]) -> bool {
        self.expose().ct_eq(other).into()
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.expose_mut().zeroize();
        let small = self.len() <= SMALL;
        let pages = std::mem::replace(&mut self.pages, SecretPages::none());
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if small && pages.is_locked() && spare.len() < MAX_SPARE {
            spare.push(pages);
        }
    }
}

/// Spare pages for `len` bytes, all zero.
fn spare_pages(len: usize) -> Option<SecretPages> {
    if len > SMALL {
        return None;
    }
    let mut pages = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
    pages.resize(len);
    Some(pages)
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.len())
    }
}

/// What a user unlocks a volume with: a typed passphrase or all bytes of a key file. Key slots do
/// not tell the two apart.
#[derive(Debug)]
pub struct Passphrase(SecretBytes);

impl Passphrase {
    /// Takes the bytes as they are.
    pub fn new(bytes: SecretBytes) -> Self {
        Self(bytes)
    }

    /// The bytes. Every call is a place where a secret may get out.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }
}

/// The key that a volume's data is encrypted with; key slots hold it wrapped.
#[derive(Debug)]
pub struct VolumeKey(SecretBytes);

impl VolumeKey {
    /// Takes the bytes as they are.
    pub fn new(bytes: SecretBytes) -> Self {
        Self(bytes)
    }

    /// The bytes. Every call is a place where a secret may get out.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }
}

/// Locks memory that somebody else keeps a secret in, a cipher's key schedule for instance, where it
/// lies; it stays locked until the process ends. Where that is not allowed, a warning is logged once.
pub fn lock_in_place(start: NonNull<u8>, len: usize) {
    if !crate::sys::lock_in_place(start, len) {
        warn_unlocked();
    }
}

/// Says once a process that secrets may be swapped out.
fn warn_unlocked() {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "keys could not be locked into memory and may be swapped to disk; raise the limit (ulimit -l), \
             or turn swap off or encrypt it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_length_only() {
        let secret = SecretBytes::copy_of(b"correct horse").unwrap();
        assert!(secret.equals(b"correct horse") && !secret.equals(b"correct horsf") && !secret.equals(b""));
        let shown = format!("{:?}", VolumeKey::new(secret));
        assert_eq!(shown, "VolumeKey(SecretBytes(13 bytes))");
    }

    /// More secrets than are kept spare, so that most of them lie where others lay.
    #[test]
    fn a_new_secret_holds_nothing_of_an_old_one() {
        for len in [1, 32, 100, SMALL, SMALL + 1] {
            let old: Vec<_> = (0..40).map(|_| SecretBytes::copy_of(&vec![7; SMALL]).unwrap()).collect();
            drop(old);
            let new: Vec<_> = (0..40).map(|_| SecretBytes::zeroed(len).unwrap()).collect();
            assert!(new.iter().all(|secret| secret.equals(&vec![0; len])), "{len} bytes");
        }
    }
}
