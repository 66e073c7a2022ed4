//! [`Export`] and [`Exports`]: what a server has to offer, as the handshake sees it.

use std::sync::Arc;

use crate::block::{Capabilities, Discard, Geometry};
use crate::error::{Error, ErrorKind, Result};
use crate::units::ByteCount;

use super::command::Form;
use super::wire::{
    MAX_STRING, NBD_FLAG_BLOCK_STATUS_PAYLOAD, NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_HAS_FLAGS,
    NBD_FLAG_READ_ONLY, NBD_FLAG_SEND_CACHE, NBD_FLAG_SEND_DF, NBD_FLAG_SEND_FAST_ZERO, NBD_FLAG_SEND_FLUSH,
    NBD_FLAG_SEND_FUA, NBD_FLAG_SEND_TRIM, NBD_FLAG_SEND_WRITE_ZEROES, text,
};

/// The smallest block that may be called preferred (proto.md, Size constraints).
const SMALLEST_PREFERRED: u32 = 512;
/// The largest export: what clients that count in signed 64-bit numbers can take.
const LARGEST_EXPORT: u64 = i64::MAX.unsigned_abs();

/// One disk under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    name: String,
    description: String,
    size: ByteCount,
    read_only: bool,
    trim: bool,
    preferred_block: u32,
}

impl Export {
    /// An export of a device with this shape. The empty name is the default export's; an empty
    /// description is none. The device must take requests of any alignment, since 1 is the minimum
    /// block that every export advertises ([`crate::block::ByteGranular`]).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a name or description that is no string of the protocol's (more
    /// than 4096 bytes, or with NUL), and for 2^63 bytes or more.
    pub fn new(name: &str, description: &str, shape: Geometry, can: Capabilities) -> Result<Self> {
        if text(name.as_bytes()).is_none() || text(description.as_bytes()).is_none() {
            let what = format!("an export's name and description have at most {MAX_STRING} bytes and no NUL");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        if shape.size.0 > LARGEST_EXPORT {
            let what = format!("{} bytes are too many for an export", shape.size.0);
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        Ok(Self {
            name: name.to_owned(),
            description: description.to_owned(),
            size: shape.size,
            read_only: can.read_only,
            trim: can.discard != Discard::Ignored,
            preferred_block: shape.preferred.bytes().max(SMALLEST_PREFERRED),
        })
    }

    /// The name that clients ask for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A sentence for the client's user; empty for none.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Its size.
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The block in bytes that requests should be aligned to, to be fast.
    pub fn preferred_block(&self) -> u32 {
        self.preferred_block
    }

    /// proto.md, Transmission flags, of a session of this `form`, with a metadata `context` or without. DF
    /// depends on replies in chunks; what writes is offered on a writable export only. `FAST_ZERO` is
    /// offered also where zeroes are never fast: the quick answer ENOTSUP is what the client wants to know.
    /// `CAN_MULTI_CONN` holds because a server opens a volume once, so that all connections share its one
    /// cache and its flushes.
    pub fn transmission_flags(&self, form: Form, context: bool) -> u16 {
        let mut flags = NBD_FLAG_HAS_FLAGS
            | NBD_FLAG_SEND_FLUSH
            | NBD_FLAG_SEND_FUA
            | NBD_FLAG_CAN_MULTI_CONN
            | NBD_FLAG_SEND_CACHE;
        if form.has_chunks() {
            flags |= NBD_FLAG_SEND_DF;
        }
        if form == Form::Extended && context {
            flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
        }
        if self.read_only {
            return flags | NBD_FLAG_READ_ONLY;
        }
        if self.trim {
            flags |= NBD_FLAG_SEND_TRIM;
        }
        flags | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO
    }
}

/// All exports that a connection may see.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    /// Each with its place among all that the server has.
    exports: Vec<(usize, Arc<Export>)>,
    /// Whether `NBD_OPT_LIST` names them. Off unless the user asks for it.
    pub listing: bool,
}

impl Exports {
    /// These exports, in this order, not listed.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] for two of one name.
    pub fn new(exports: Vec<Export>) -> Result<Self> {
        for (place, export) in exports.iter().enumerate() {
            if exports[..place].iter().any(|earlier| earlier.name == export.name) {
                let what = format!("two exports have the name '{}'", export.name);
                return Err(Error::new(ErrorKind::AlreadyExists, what));
            }
        }
        Ok(Self { exports: exports.into_iter().map(Arc::new).enumerate().collect(), listing: false })
    }

    /// Those that `keep` wants a client to see, asked with each one's place among all that the server has,
    /// which it keeps. No option tells one that is left out from one that does not exist.
    #[must_use]
    pub fn visible(&self, mut keep: impl FnMut(usize, &Export) -> bool) -> Self {
        let kept = self.exports.iter().filter(|(index, export)| keep(*index, export));
        Self { exports: kept.cloned().collect(), listing: self.listing }
    }

    /// The export of exactly this name, with its place among all that the server has.
    pub fn find(&self, name: &str) -> Option<(usize, &Arc<Export>)> {
        self.exports.iter().find(|(_, export)| export.name == name).map(|(index, export)| (*index, export))
    }

    /// The exports in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.exports.iter().map(|(_, export)| export)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::testing::{CAN, FIXED, SHAPE, client, exports, named, option, queries, run};
    use crate::nbd::wire::*;
    use crate::units::BlockSize;

    fn export(can: Capabilities) -> Export {
        Export::new("disk", "", SHAPE, can).unwrap()
    }

    #[test]
    fn flags_follow_the_device() {
        let always = 1 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 10;
        let writes = 1 << 6 | 1 << 11;
        let flags = |can, form, context| export(can).transmission_flags(form, context);
        for context in [false, true] {
            assert_eq!(flags(CAN, Form::Simple, context), always | writes | 1 << 5);
            assert_eq!(flags(CAN, Form::Structured, context), always | writes | 1 << 5 | 1 << 7);
            let payload = if context { 1 << 12 } else { 0 };
            assert_eq!(flags(CAN, Form::Extended, context), always | writes | 1 << 5 | 1 << 7 | payload);
        }
        let no_trim = Capabilities { discard: Discard::Ignored, ..CAN };
        assert_eq!(flags(no_trim, Form::Simple, false), always | writes);
        let read_only = Capabilities { read_only: true, ..CAN };
        assert_eq!(flags(read_only, Form::Simple, false), always | 1 << 1);
    }

    #[test]
    fn the_preferred_block_is_never_below_512() {
        let of =
            |preferred| Export::new("", "", Geometry { preferred, ..SHAPE }, CAN).unwrap().preferred_block();
        assert_eq!((of(BlockSize::BYTE), of(BlockSize::B4096)), (512, 4096));
    }

    #[test]
    fn impossible_exports_are_refused() {
        let new = |name: &str, size| {
            Export::new(name, "", Geometry { size: ByteCount(size), ..SHAPE }, CAN).map_err(|e| e.kind())
        };
        assert!(new(&"x".repeat(4096), LARGEST_EXPORT).is_ok());
        assert_eq!(new(&"x".repeat(4097), 0), Err(ErrorKind::InvalidInput));
        assert_eq!(new("a\0", 0), Err(ErrorKind::InvalidInput));
        assert_eq!(new("", LARGEST_EXPORT + 1), Err(ErrorKind::InvalidInput));
        let twins = Exports::new(vec![export(CAN), export(CAN)]);
        assert_eq!(twins.map_err(|e| e.kind()).err(), Some(ErrorKind::AlreadyExists));
    }

    /// Whatever is asked about an export that is not visible, the answer is that to one that does not
    /// exist, byte for byte.
    #[test]
    fn what_is_not_visible_does_not_exist() {
        let ask = |exports: Exports, options: &[Vec<u8>]| {
            let start = [option(NBD_OPT_STRUCTURED_REPLY, b"")];
            run(&Arc::new(exports), &client(FIXED, &[&start, options].concat()))
        };
        let mut all = (*exports()).clone();
        all.listing = true;
        let hidden = all.visible(|_, export| export.name() != "disk");
        let never = Exports { exports: vec![all.exports[1].clone(), all.exports[2].clone()], listing: true };
        let base = &["base:allocation"];
        for options in [
            vec![option(NBD_OPT_LIST, b"")],
            vec![option(NBD_OPT_INFO, &named("disk", &[1, 2, 3]))],
            vec![option(NBD_OPT_GO, &named("disk", &[]))],
            vec![option(NBD_OPT_EXPORT_NAME, b"disk")],
            vec![option(NBD_OPT_LIST_META_CONTEXT, &queries("disk", &[]))],
            vec![option(NBD_OPT_SET_META_CONTEXT, &queries("disk", base))],
        ] {
            assert_eq!(ask(hidden.clone(), &options), ask(never.clone(), &options));
            assert_ne!(
                ask(hidden.clone(), &options),
                ask(all.clone(), &options),
                "the question tells them apart"
            );
        }
    }

    #[test]
    fn what_is_visible_keeps_its_place() {
        let some = exports().visible(|index, _| index != 0);
        assert_eq!(some.find("tape").map(|(index, _)| index), Some(1));
        let fewer = some.visible(|index, export| {
            assert!(index > 0 && export.name() != "disk");
            index == 2
        });
        assert_eq!(fewer.find("").map(|(index, _)| index), Some(2));
        assert_eq!((fewer.find("tape"), fewer.iter().count()), (None, 1));
    }

    /// CVE-2013-6410's kind of fault: a name is not matched by its beginning.
    #[test]
    fn names_match_whole_or_not_at_all() {
        let exports = Exports::new(vec![export(CAN)]).unwrap();
        assert!(exports.find("disk").is_some());
        for other in ["", "dis", "disk1", "Disk", "disk/", " disk"] {
            assert!(exports.find(other).is_none(), "{other:?}");
        }
    }
}
