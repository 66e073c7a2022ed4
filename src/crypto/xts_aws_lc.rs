//! AES-256-XTS by AWS-LC, through its C interface: about ten times as fast as the reference.
//!
//! A cipher context holds a key schedule and the state of one data unit, so two threads cannot share
//! one. Each direction therefore keeps a pool of contexts, all copies of one keyed at the start; a
//! call borrows one, and returns it unless it failed. There are never more contexts than there were
//! calls at once.
//!
//! AWS-LC zeroes a context's memory when it is freed; we lock the key schedule in it. A failed call is an error
//! of ours; the bytes of a failed run are not used (see `xts.rs`).
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use aws_lc_sys as aws_lc;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::lock_in_place;
use crate::units::BlockSize;

use super::xts::{Xts, sectors};

const KEY_LEN: usize = 64;

/// AES-256-XTS from a key of 64 bytes.
pub(super) fn aes_256(key: &[u8]) -> Result<Box<dyn Xts>> {
    let key = key.first_chunk().filter(|_| key.len() == KEY_LEN);
    let key = key.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "an AES-256-XTS key has 64 bytes"))?;
    Ok(Box::new(AwsLc {
        encrypt: Pool::new(Context::keyed(key, Direction::Encrypt)?),
        decrypt: Pool::new(Context::keyed(key, Direction::Decrypt)?),
    }))
}

struct AwsLc {
    encrypt: Pool,
    decrypt: Pool,
}

impl Xts for AwsLc {
    fn encrypt(&self, run: &mut [u8], sector_size: BlockSize, first_tweak: u64) -> Result<()> {
        self.encrypt.transform(run, sector_size, first_tweak)
    }

    fn decrypt(&self, run: &mut [u8], sector_size: BlockSize, first_tweak: u64) -> Result<()> {
        self.decrypt.transform(run, sector_size, first_tweak)
    }

    fn name(&self) -> &'static str {
        "aes-256-xts, AWS-LC"
    }
}

/// Contexts of one key and direction.
struct Pool {
    contexts: Mutex<Contexts>,
}

struct Contexts {
    /// Never used itself, only copied.
    master: Context,
    idle: Vec<Context>,
}

impl Pool {
    fn new(master: Context) -> Self {
        Self { contexts: Mutex::new(Contexts { master, idle: Vec::new() }) }
    }

    fn transform(&self, run: &mut [u8], sector_size: BlockSize, first_tweak: u64) -> Result<()> {
        let sectors = sectors(run, sector_size, first_tweak)?;
        let mut context = self.take()?;
        for (tweak, sector) in sectors {
            context.transform(&tweak, sector)?;
        }
        self.contexts().idle.push(context);
        Ok(())
    }

    fn take(&self) -> Result<Context> {
        let mut contexts = self.contexts();
        match contexts.idle.pop() {
            Some(context) => Ok(context),
            None => contexts.master.copy(),
        }
    }

    /// The lists are consistent after every statement, so a panic elsewhere harms nothing here.
    fn contexts(&self) -> std::sync::MutexGuard<'_, Contexts> {
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The values of `EVP_CipherInit_ex`'s `enc`.
#[derive(Clone, Copy)]
enum Direction {
    Decrypt = 0,
    Encrypt = 1,
}

/// Keep what the context was keyed for.
const SAME_DIRECTION: c_int = -1;

/// An owned `EVP_CIPHER_CTX`.
struct Context(NonNull<aws_lc::EVP_CIPHER_CTX>);

// SAFETY: a context is plain memory with no tie to the thread that made it.
unsafe impl Send for Context {}

impl Context {
    /// A context without cipher or key.
    fn new() -> Result<Self> {
        // SAFETY: takes nothing; returns a context of ours alone, or null.
        let context = unsafe { aws_lc::EVP_CIPHER_CTX_new() };
        NonNull::new(context)
            .map(Self)
            .ok_or_else(|| Error::new(ErrorKind::OutOfMemory, "no memory for a cipher context"))
    }

    fn keyed(key: &[u8; KEY_LEN], direction: Direction) -> Result<Self> {
        let context = Self::new()?;
        // SAFETY: the context is valid and ours; the cipher is a static of AWS-LC whose key length is
        // the 64 bytes that `key` has; the initial tweak may be absent and then is not read.
        let done = unsafe {
            aws_lc::EVP_CipherInit_ex(
                context.0.as_ptr(),
                aws_lc::EVP_aes_256_xts(),
                ptr::null_mut(),
                key.as_ptr(),
                ptr::null(),
                direction as c_int,
            )
        };
        succeeded(done, "keying")?;
        context.lock_key_schedule();
        Ok(context)
    }

    fn copy(&self) -> Result<Self> {
        let copy = Self::new()?;
        // SAFETY: both contexts are valid; the copy is ours alone, and the pool's lock, under which
        // every copy is made, keeps `self` from changing.
        let done = unsafe { aws_lc::EVP_CIPHER_CTX_copy(copy.0.as_ptr(), self.0.as_ptr()) };
        succeeded(done, "copying the context of")?;
        copy.lock_key_schedule();
        Ok(copy)
    }

    /// Locks what holds the key into RAM: the cipher's own data begin with the schedules of the data
    /// key and of the tweak key, each an `AES_KEY` (AWS-LC, `EVP_AES_XTS_CTX`).
    fn lock_key_schedule(&self) {
        const SCHEDULES: usize = 2 * size_of::<aws_lc::AES_KEY>().next_multiple_of(16);
        // SAFETY: the context is valid, and a keyed one has data of its cipher's.
        let data = unsafe { (*self.0.as_ptr()).cipher_data };
        if let Some(data) = NonNull::new(data.cast()) {
            lock_in_place(data, SCHEDULES);
        }
    }

    /// Transforms one data unit in place.
    fn transform(&mut self, tweak: &[u8; 16], sector: &mut [u8]) -> Result<()> {
        // SAFETY: the context is valid, keyed and, by `&mut self`, ours; absent cipher and key mean
        // "keep them"; the tweak has the 16 bytes that XTS reads.
        let done = unsafe {
            aws_lc::EVP_CipherInit_ex(
                self.0.as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                tweak.as_ptr(),
                SAME_DIRECTION,
            )
        };
        succeeded(done, "setting the tweak of")?;
        // SAFETY: as above; input and output are the same `sector.len()` bytes, which XTS allows: it
        // reads each block before it writes it, and writes no more than it reads.
        let done = unsafe {
            aws_lc::EVP_Cipher(self.0.as_ptr(), sector.as_mut_ptr(), sector.as_ptr(), sector.len())
        };
        succeeded(done, "running")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is valid, ours, and not used after this.
        unsafe { aws_lc::EVP_CIPHER_CTX_free(self.0.as_ptr()) };
    }
}

/// Every function used here returns 1 when it has done its work.
fn succeeded(returned: c_int, what: &str) -> Result<()> {
    match returned {
        1 => Ok(()),
        _ => Err(Error::new(ErrorKind::Io, format!("{what} AES-XTS failed inside AWS-LC"))),
    }
}
