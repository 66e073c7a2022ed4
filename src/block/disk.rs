//! [`Disk`]: the checked door to a device.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, ByteOffset};

use super::{BlockDevice, Buffer, Capabilities, Durability, Extent, Geometry, Range, Zeroing};

/// A shared handle to a device, through which every request goes and by which it is checked: inside
/// the device, aligned, its buffer as long as its range, no write to a read-only device. Zero-length
/// requests succeed and reach no device.
///
/// Cloning it shares the device.
#[derive(Clone)]
pub struct Disk {
    device: Arc<dyn BlockDevice>,
    geometry: Geometry,
    capabilities: Capabilities,
}

impl Disk {
    /// Wraps a device; its geometry and capabilities are asked for once.
    pub fn new(device: impl BlockDevice + 'static) -> Self {
        let (geometry, capabilities) = (device.geometry(), device.capabilities());
        Self { device: Arc::new(device), geometry, capabilities }
    }

    /// The device's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What the device can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// See [`BlockDevice::read`].
    pub fn read(&self, offset: ByteOffset, into: &mut [u8]) -> Result<()> {
        match self.range(offset, ByteCount::of(into))? {
            Some(at) => self.device.read(at, into),
            None => Ok(()),
        }
    }

    /// See [`BlockDevice::write`].
    pub fn write(&self, offset: ByteOffset, data: Buffer, durability: Durability) -> Result<()> {
        self.check_writable()?;
        match self.range(offset, ByteCount::of(&data))? {
            Some(at) => self.device.write(at, data, durability),
            None => Ok(()),
        }
    }

    /// See [`BlockDevice::flush`]. Succeeds on a read-only device, where nothing waits.
    pub fn flush(&self) -> Result<()> {
        if self.capabilities.read_only { Ok(()) } else { self.device.flush() }
    }

    /// See [`BlockDevice::discard`].
    pub fn discard(&self, offset: ByteOffset, len: ByteCount, durability: Durability) -> Result<()> {
        self.check_writable()?;
        match self.range(offset, len)? {
            Some(at) => self.device.discard(at, durability),
            None => Ok(()),
        }
    }

    /// See [`BlockDevice::write_zeroes`].
    pub fn write_zeroes(
        &self,
        offset: ByteOffset,
        len: ByteCount,
        how: Zeroing,
        durability: Durability,
    ) -> Result<()> {
        self.check_writable()?;
        if how.only_if_fast && !self.capabilities.fast_zeroes {
            return Err(Error::new(ErrorKind::Unsupported, "zeroes cannot be written fast on this device"));
        }
        match self.range(offset, len)? {
            Some(at) => self.device.write_zeroes(at, how, durability),
            None => Ok(()),
        }
    }

    /// See [`BlockDevice::extents`]. `limit` must be at least 1; no extents for an empty range.
    pub fn extents(&self, offset: ByteOffset, len: ByteCount, limit: usize) -> Result<Vec<Extent>> {
        match self.range(offset, len)? {
            Some(at) => self.device.extents(at, limit.max(1)),
            None => Ok(Vec::new()),
        }
    }

    /// See [`BlockDevice::prefetch`].
    pub fn prefetch(&self, offset: ByteOffset, len: ByteCount) -> Result<()> {
        match self.range(offset, len)? {
            Some(at) => self.device.prefetch(at),
            None => Ok(()),
        }
    }

    fn range(&self, offset: ByteOffset, len: ByteCount) -> Result<Option<Range>> {
        let range = self.geometry.range(offset, len)?;
        Ok((!range.is_empty()).then_some(range))
    }

    fn check_writable(&self) -> Result<()> {
        match self.capabilities.read_only {
            true => Err(Error::new(ErrorKind::ReadOnly, "the device is read-only")),
            false => Ok(()),
        }
    }
}
