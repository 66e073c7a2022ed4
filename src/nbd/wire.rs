//! The protocol's numbers under the protocol's own names, and a checked reader of its fields.
//!
//! Everything on the wire is big-endian. Sections are those of proto.md of the `NetworkBlockDevice`
//! project; what concerns extended headers is in its branch extension-ext-header.

/// proto.md, Newstyle negotiation: the first eight bytes that a server sends (`NBDMAGIC`).
pub const NBD_INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// proto.md, Newstyle negotiation: the greeting's second half, and the start of every option (`IHAVEOPT`).
pub const NBD_OPTS_MAGIC: u64 = 0x4948_4156_454f_5054;
/// proto.md, Fixed newstyle negotiation: the start of every reply to an option.
pub const NBD_REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// proto.md, Request message.
pub const NBD_REQUEST_MAGIC: u32 = 0x2560_9513;
/// proto.md, Simple reply message.
pub const NBD_SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// proto.md, Structured reply chunk message.
pub const NBD_STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// proto.md, Request message, the extended form.
pub const NBD_EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// proto.md, Extended reply chunk message.
pub const NBD_EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of the server's greeting: two magic numbers and the handshake flags.
pub const GREETING_LEN: usize = 18;
/// Bytes of an option's header: magic, option, length.
pub const OPTION_HEADER_LEN: usize = 16;
/// Bytes of an option reply's header: magic, option, reply type, length.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;
/// Bytes of a request's header: magic, flags, type, cookie, offset, length.
pub const REQUEST_HEADER_LEN: usize = 28;
/// Bytes of an extended request's header: as above, but with a length of 64 bits.
pub const EXTENDED_REQUEST_HEADER_LEN: usize = 32;
/// Bytes of a simple reply's header: magic, error, cookie.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of a structured reply chunk's header: magic, flags, type, cookie, length.
pub const CHUNK_HEADER_LEN: usize = 20;
/// Bytes of an extended reply chunk's header: magic, flags, type, cookie, offset, length.
pub const EXTENDED_CHUNK_HEADER_LEN: usize = 32;
/// Bytes of a `BLOCK_STATUS` request's payload that names one metadata context: effect length, id.
pub const STATUS_PAYLOAD_LEN: usize = 12;

/// proto.md, Conventions: the longest string, in bytes.
pub const MAX_STRING: usize = 4096;
/// proto.md, Size constraints: the longest payload of a READ or WRITE that this server takes, the
/// protocol's default.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// proto.md, Structured reply types, `NBD_REPLY_TYPE_BLOCK_STATUS`: most extents in one chunk.
pub const MAX_EXTENTS: usize = 1 << 20;

/// proto.md, Handshake flags: the server speaks fixed newstyle.
pub const NBD_FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// proto.md, Handshake flags: the server can leave out the zeroes after `EXPORT_NAME`.
pub const NBD_FLAG_NO_ZEROES: u16 = 1 << 1;
/// proto.md, Client flags: the client speaks fixed newstyle.
pub const NBD_FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// proto.md, Client flags: the client wants no zeroes after `EXPORT_NAME`.
pub const NBD_FLAG_C_NO_ZEROES: u32 = 1 << 1;

/// proto.md, Transmission flags: always set.
pub const NBD_FLAG_HAS_FLAGS: u16 = 1 << 0;
/// proto.md, Transmission flags: writes are refused.
pub const NBD_FLAG_READ_ONLY: u16 = 1 << 1;
/// proto.md, Transmission flags: FLUSH is understood.
pub const NBD_FLAG_SEND_FLUSH: u16 = 1 << 2;
/// proto.md, Transmission flags: the FUA command flag is understood.
pub const NBD_FLAG_SEND_FUA: u16 = 1 << 3;
/// proto.md, Transmission flags: TRIM is understood.
pub const NBD_FLAG_SEND_TRIM: u16 = 1 << 5;
/// proto.md, Transmission flags: `WRITE_ZEROES` is understood.
pub const NBD_FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// proto.md, Transmission flags: the DF command flag is understood.
pub const NBD_FLAG_SEND_DF: u16 = 1 << 7;
/// proto.md, Transmission flags: what one connection flushes is durable for all.
pub const NBD_FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// proto.md, Transmission flags: CACHE is understood.
pub const NBD_FLAG_SEND_CACHE: u16 = 1 << 10;
/// proto.md, Transmission flags: the `FAST_ZERO` command flag is understood.
pub const NBD_FLAG_SEND_FAST_ZERO: u16 = 1 << 11;
/// proto.md, Transmission flags: a `BLOCK_STATUS` may name the contexts that it asks about.
pub const NBD_FLAG_BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

/// proto.md, Option types: choose an export and end the handshake, the old way.
pub const NBD_OPT_EXPORT_NAME: u32 = 1;
/// proto.md, Option types: end the session.
pub const NBD_OPT_ABORT: u32 = 2;
/// proto.md, Option types: list the exports.
pub const NBD_OPT_LIST: u32 = 3;
/// proto.md, Option types: withdrawn, never answered but with `NBD_REP_ERR_UNSUP`.
pub const NBD_OPT_PEEK_EXPORT: u32 = 4;
/// proto.md, Option types: go over to TLS.
pub const NBD_OPT_STARTTLS: u32 = 5;
/// proto.md, Option types: describe an export.
pub const NBD_OPT_INFO: u32 = 6;
/// proto.md, Option types: describe an export and end the handshake with it.
pub const NBD_OPT_GO: u32 = 7;
/// proto.md, Option types: use structured replies.
pub const NBD_OPT_STRUCTURED_REPLY: u32 = 8;
/// proto.md, Option types: list metadata contexts.
pub const NBD_OPT_LIST_META_CONTEXT: u32 = 9;
/// proto.md, Option types: choose metadata contexts.
pub const NBD_OPT_SET_META_CONTEXT: u32 = 10;
/// proto.md, Option types: use extended headers.
pub const NBD_OPT_EXTENDED_HEADERS: u32 = 11;

/// proto.md, Option reply types: done.
pub const NBD_REP_ACK: u32 = 1;
/// proto.md, Option reply types: an export's name and description.
pub const NBD_REP_SERVER: u32 = 2;
/// proto.md, Option reply types: one piece of information about an export.
pub const NBD_REP_INFO: u32 = 3;
/// proto.md, Option reply types: a metadata context.
pub const NBD_REP_META_CONTEXT: u32 = 4;
/// proto.md, Option reply types: the option is unknown here.
pub const NBD_REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// proto.md, Option reply types: the server's configuration forbids it.
pub const NBD_REP_ERR_POLICY: u32 = (1 << 31) + 2;
/// proto.md, Option reply types: the option's data cannot be right.
pub const NBD_REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// proto.md, Option reply types: not before TLS.
pub const NBD_REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
/// proto.md, Option reply types: there is no such export.
pub const NBD_REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// proto.md, Option reply types: the server is about to stop.
pub const NBD_REP_ERR_SHUTDOWN: u32 = (1 << 31) + 7;
/// proto.md, Option reply types: the option's data is too long.
pub const NBD_REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;
/// proto.md, Option reply types: extended headers rule it out, or are missing.
pub const NBD_REP_ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;

/// proto.md, Option reply types, `NBD_REP_INFO`: size and transmission flags.
pub const NBD_INFO_EXPORT: u16 = 0;
/// proto.md, Option reply types, `NBD_REP_INFO`: the export's name.
pub const NBD_INFO_NAME: u16 = 1;
/// proto.md, Option reply types, `NBD_REP_INFO`: a sentence about the export.
pub const NBD_INFO_DESCRIPTION: u16 = 2;
/// proto.md, Option reply types, `NBD_REP_INFO`: minimum and preferred block, maximum payload.
pub const NBD_INFO_BLOCK_SIZE: u16 = 3;

/// proto.md, Request types.
pub const NBD_CMD_READ: u16 = 0;
/// proto.md, Request types.
pub const NBD_CMD_WRITE: u16 = 1;
/// proto.md, Request types.
pub const NBD_CMD_DISC: u16 = 2;
/// proto.md, Request types.
pub const NBD_CMD_FLUSH: u16 = 3;
/// proto.md, Request types.
pub const NBD_CMD_TRIM: u16 = 4;
/// proto.md, Request types.
pub const NBD_CMD_CACHE: u16 = 5;
/// proto.md, Request types.
pub const NBD_CMD_WRITE_ZEROES: u16 = 6;
/// proto.md, Request types.
pub const NBD_CMD_BLOCK_STATUS: u16 = 7;

/// proto.md, Command flags: reply once the data is durable.
pub const NBD_CMD_FLAG_FUA: u16 = 1 << 0;
/// proto.md, Command flags: `WRITE_ZEROES` must not make a hole.
pub const NBD_CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// proto.md, Command flags: READ must come in one content chunk.
pub const NBD_CMD_FLAG_DF: u16 = 1 << 2;
/// proto.md, Command flags: `BLOCK_STATUS` must answer with one extent.
pub const NBD_CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// proto.md, Command flags: `WRITE_ZEROES` must be fast or fail.
pub const NBD_CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
/// proto.md, Command flags: the request's length is that of a payload. Extended headers only.
pub const NBD_CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// proto.md, Structured and extended header reply flags: the last chunk of a reply.
pub const NBD_REPLY_FLAG_DONE: u16 = 1 << 0;
/// proto.md, Structured reply types: nothing more.
pub const NBD_REPLY_TYPE_NONE: u16 = 0;
/// proto.md, Structured reply types: data.
pub const NBD_REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// proto.md, Structured reply types: a run of zeroes.
pub const NBD_REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// proto.md, Structured reply types: extents of one metadata context.
pub const NBD_REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// proto.md, Structured reply types: extents of one metadata context, with lengths of 64 bits.
pub const NBD_REPLY_TYPE_BLOCK_STATUS_EXT: u16 = 6;
/// proto.md, Structured reply types: the request failed.
pub const NBD_REPLY_TYPE_ERROR: u16 = (1 << 15) + 1;

/// proto.md, `base:allocation` metadata context: the context's name.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// proto.md, `base:allocation` metadata context: the store holds no space for it.
pub const NBD_STATE_HOLE: u32 = 1 << 0;
/// proto.md, `base:allocation` metadata context: it reads as zeroes.
pub const NBD_STATE_ZERO: u32 = 1 << 1;

/// Takes fields off the front of a slice. Every method returns `None`, and takes nothing, when the
/// slice is too short.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of all of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// A field of 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// A field of 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A field of 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string of `len` bytes that keeps the rules of proto.md, Conventions.
    pub fn string(&mut self, len: u32) -> Option<&'a str> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(len).ok()?)?;
        let text = text(taken)?;
        self.rest = rest;
        Some(text)
    }

    /// Nothing, if nothing is left: what follows the last field is an error.
    pub fn end(&self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }
}

/// A string as proto.md, Conventions, has it: at most 4096 bytes, UTF-8, no NUL.
pub fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > MAX_STRING || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_off_the_front_or_not_at_all() {
        let bytes = [0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, b'h', b'i', 9];
        let mut reader = Reader::new(&bytes);
        assert_eq!((reader.u16(), reader.u32(), reader.u64()), (Some(1), Some(2), Some(3)));
        assert_eq!(reader.string(4), None);
        assert_eq!(reader.string(u32::MAX), None);
        assert_eq!(reader.string(2), Some("hi"));
        assert_eq!((reader.u16(), reader.end()), (None, None));
        assert_eq!(reader.string(1), Some("\t"));
        assert_eq!(reader.end(), Some(()));
    }

    #[test]
    fn strings_are_short_utf8_without_nul() {
        let longest = "x".repeat(MAX_STRING);
        assert_eq!(text(longest.as_bytes()), Some(longest.as_str()));
        assert_eq!(text("x".repeat(MAX_STRING + 1).as_bytes()), None);
        assert_eq!(text(b""), Some(""));
        assert_eq!(text("größe".as_bytes()), Some("größe"));
        assert_eq!(text(b"a\0b"), None);
        assert_eq!(text(b"\xff\xfe"), None);
    }
}
