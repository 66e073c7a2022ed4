//! Volumes that exist already and shall be measured: how they are named, and that nothing but a volume of
//! ours is touched, and that nothing is overwritten unasked.

use std::path::PathBuf;

use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::ByteCount;
use hostveil::volume;

use crate::place::Place;
use crate::servers::Setup;

/// `DISK,key-file=FILE[,header=FILE][,anchor=ANCHOR]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskSpec {
    disk: PathBuf,
    key_file: PathBuf,
    header: Option<PathBuf>,
    anchor: Option<String>,
}

/// The parser of DISK-SPEC.
pub(crate) fn disk_spec(text: &str) -> Result<DiskSpec, String> {
    let form = "a disk is named as DISK,key-file=FILE[,header=FILE][,anchor=ANCHOR]";
    let mut parts = text.split(',');
    let disk = parts.next().filter(|disk| !disk.is_empty()).ok_or(form)?;
    let (mut key_file, mut header, mut anchor) = (None, None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("key-file", file)) if !file.is_empty() => key_file = Some(PathBuf::from(file)),
            Some(("header", file)) if !file.is_empty() => header = Some(PathBuf::from(file)),
            Some(("anchor", address)) if !address.is_empty() => anchor = Some(address.to_owned()),
            _ => return Err(form.to_owned()),
        }
    }
    Ok(DiskSpec { disk: disk.into(), key_file: key_file.ok_or(form)?, header, anchor })
}

impl DiskSpec {
    /// Refuses what is no volume of ours, and a volume whose data would be overwritten unasked. Reads,
    /// and writes nothing.
    pub(crate) fn check(&self, writes: bool, destroy: bool) -> Result<()> {
        volume::describe(&volume::Place { disk: self.disk.clone(), header: self.header.clone() })?;
        if !self.key_file.exists() {
            let what = format!("the key file {} does not exist", self.key_file.display());
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        if writes && !destroy {
            let what = format!("the data on {} would be overwritten", self.disk.display());
            let hint = "pass --destroy if nothing on it matters, or --io read";
            return Err(Error::new(ErrorKind::InvalidInput, what).hint(hint));
        }
        Ok(())
    }

    /// The disk's name in tables.
    pub(crate) fn name(&self) -> String {
        self.disk.display().to_string()
    }

    /// How to serve it. `number` tells several apart.
    pub(crate) fn setup(&self, number: usize, hostveil: PathBuf, place: &Place, read_only: bool) -> Setup {
        Setup {
            hostveil,
            this: PathBuf::new(),
            disk: self.disk.clone(),
            key: self.key_file.clone(),
            header: self.header.clone(),
            anchor: self.anchor.clone(),
            socket: place.socket(&format!("given-{number}")),
            size: ByteCount(0),
            read_only,
        }
    }

    /// As it was given.
    pub(crate) fn text(&self) -> String {
        let header =
            self.header.as_ref().map(|file| format!(",header={}", file.display())).unwrap_or_default();
        let anchor = self.anchor.as_ref().map(|address| format!(",anchor={address}")).unwrap_or_default();
        format!("{},key-file={}{header}{anchor}", self.disk.display(), self.key_file.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_with_their_keys() {
        let text = "a/disk.img,key-file=k,header=h,anchor=file:a";
        assert_eq!(disk_spec(text).unwrap().text(), text);
        assert_eq!(disk_spec("d,key-file=k").unwrap().header, None);
        for bad in ["", "disk", "disk,key-file=", ",key-file=k", "d,key-file=k,x=y", "d,key-file"] {
            assert!(disk_spec(bad).is_err(), "{bad}");
        }
    }
}
