//! A client that says whatever it likes, in each of the protocol's three forms.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hostveil::nbd::Form;
pub(crate) use hostveil::nbd::wire::*;

/// What all tests do alike in each form.
pub(crate) const FORMS: [Form; 3] = [Form::Simple, Form::Structured, Form::Extended];
/// The error numbers of the wire.
pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;
pub(crate) const ENOTSUP: u32 = 95;
pub(crate) const ESHUTDOWN: u32 = 108;
/// A server that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection's client.
pub(crate) struct Client {
    stream: UnixStream,
    form: Form,
}

/// A reply: an error, or what came with success.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    /// 0, or the error's number.
    pub(crate) error: u32,
    /// What follows the header, of a chunk.
    pub(crate) payload: Vec<u8>,
}

/// An option with its header.
pub(crate) fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [b"IHAVEOPT", &kind.to_be_bytes()[..], &len.to_be_bytes(), data].concat()
}

/// A string with its length before it.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// The data of an INFO or GO about an export.
pub(crate) fn named(export: &str) -> Vec<u8> {
    [string(export), vec![0, 0]].concat()
}

/// The data of a `SET_META_CONTEXT` or `LIST_META_CONTEXT` of `base:allocation`.
pub(crate) fn allocation(export: &str) -> Vec<u8> {
    [string(export), vec![0, 0, 0, 1], string(BASE_ALLOCATION)].concat()
}

/// The client's flags and the options that lead to a session of this form, with `base:allocation` where
/// that is possible.
pub(crate) fn hello(form: Form, export: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    match form {
        Form::Simple => {}
        Form::Structured => bytes.extend(option(NBD_OPT_STRUCTURED_REPLY, b"")),
        Form::Extended => bytes.extend(option(NBD_OPT_EXTENDED_HEADERS, b"")),
    }
    if form.has_chunks() {
        bytes.extend(option(NBD_OPT_SET_META_CONTEXT, &allocation(export)));
    }
    bytes.extend(option(NBD_OPT_GO, &named(export)));
    bytes
}

/// A request's header; a compact one has the lower half of `len`.
pub(crate) fn request(form: Form, kind: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let extended = form == Form::Extended;
    let magic = if extended { NBD_EXTENDED_REQUEST_MAGIC } else { NBD_REQUEST_MAGIC };
    let len = len.to_be_bytes();
    [
        &magic.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        if extended { &len } else { &len[4..] },
    ]
    .concat()
}

/// A WRITE with its payload.
pub(crate) fn write(form: Form, flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let flags = if form == Form::Extended { flags | NBD_CMD_FLAG_PAYLOAD_LEN } else { flags };
    [&request(form, NBD_CMD_WRITE, flags, cookie, offset, data.len() as u64), data].concat()
}

impl Client {
    /// A connection whose greeting was read. Waits until the server has room for it.
    pub(crate) fn connect(socket: &Path) -> Self {
        for _ in 0..3000 {
            let stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            let mut client = Self { stream, form: Form::Simple };
            let mut greeting = [0; GREETING_LEN];
            if client.stream.read_exact(&mut greeting).is_ok() {
                assert_eq!(greeting, *b"NBDMAGICIHAVEOPT\0\x03");
                return client;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server takes no connections");
    }

    /// A connection in the transmission phase with the export `disk`.
    pub(crate) fn attach(socket: &Path, form: Form) -> Self {
        Self::attach_to(socket, form, "disk")
    }

    pub(crate) fn attach_to(socket: &Path, form: Form, export: &str) -> Self {
        let mut client = Self::connect(socket);
        client.send(&hello(form, export));
        loop {
            let (option, kind, _) = client.option_reply();
            assert!(kind & 1 << 31 == 0, "option {option}: {kind:#x}");
            if (option, kind) == (NBD_OPT_GO, NBD_REP_ACK) {
                return client.in_form(form);
            }
        }
    }

    /// The same client, whose requests and replies have this form from now on.
    pub(crate) fn in_form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends as much as the server takes.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn request(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, len: u64) {
        self.send(&request(self.form, kind, flags, cookie, offset, len));
    }

    pub(crate) fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        self.send(&write(self.form, flags, cookie, offset, data));
    }

    /// The next reply to an option: which, of what type, with what data.
    pub(crate) fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        let header = self.data(OPTION_REPLY_HEADER_LEN);
        let mut reader = Reader::new(&header);
        assert_eq!(reader.u64(), Some(NBD_REP_MAGIC));
        let (option, kind) = (reader.u32().unwrap(), reader.u32().unwrap());
        let data = self.data(reader.u32().unwrap() as usize);
        (option, kind, data)
    }

    /// Sends an option and returns the type and data of the last reply to it.
    pub(crate) fn option(&mut self, kind: u32, data: &[u8]) -> (u32, Vec<u8>) {
        self.send(&option(kind, data));
        loop {
            let (to, reply, data) = self.option_reply();
            assert_eq!(to, kind);
            if reply == NBD_REP_ACK || reply & 1 << 31 != 0 {
                return (reply, data);
            }
        }
    }

    /// The next reply, which must be of the session's form and the only one to its request.
    pub(crate) fn reply(&mut self) -> Reply {
        let magic = u32::from_be_bytes(self.data(4).try_into().unwrap());
        if self.form == Form::Simple {
            assert_eq!(magic, NBD_SIMPLE_REPLY_MAGIC);
            let error = u32::from_be_bytes(self.data(4).try_into().unwrap());
            return Reply { cookie: self.u64(), error, payload: vec![] };
        }
        let extended = self.form == Form::Extended;
        assert_eq!(magic, if extended { NBD_EXTENDED_REPLY_MAGIC } else { NBD_STRUCTURED_REPLY_MAGIC });
        let flags_and_kind = self.data(4);
        assert_eq!(flags_and_kind[..2], NBD_REPLY_FLAG_DONE.to_be_bytes());
        let kind = u16::from_be_bytes([flags_and_kind[2], flags_and_kind[3]]);
        let cookie = self.u64();
        let len = if extended {
            let _offset = self.u64();
            self.u64()
        } else {
            u32::from_be_bytes(self.data(4).try_into().unwrap()).into()
        };
        let payload = self.data(usize::try_from(len).unwrap());
        let error = match kind {
            NBD_REPLY_TYPE_ERROR => u32::from_be_bytes(payload[..4].try_into().unwrap()),
            _ => 0,
        };
        Reply { cookie, error, payload }
    }

    /// The next reply's cookie and error.
    pub(crate) fn outcome(&mut self) -> (u64, u32) {
        let reply = self.reply();
        (reply.cookie, reply.error)
    }

    /// The same of a connection that may end at any byte: `None` at its end.
    pub(crate) fn try_outcome(&mut self) -> Option<(u64, u32)> {
        let mut header = match self.form {
            Form::Simple => vec![0; SIMPLE_REPLY_LEN],
            Form::Structured => vec![0; CHUNK_HEADER_LEN],
            Form::Extended => vec![0; EXTENDED_CHUNK_HEADER_LEN],
        };
        self.stream.read_exact(&mut header).ok()?;
        let cookie = u64::from_be_bytes(header[8..16].try_into().unwrap());
        let (first, last) = (u32::from_be_bytes(header[4..8].try_into().unwrap()), header.len() - 4);
        if self.form == Form::Simple {
            return Some((cookie, first));
        }
        let len = u32::from_be_bytes(header[last..].try_into().unwrap());
        let mut payload = vec![0; len as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some((cookie, payload.first_chunk().map_or(0, |error| u32::from_be_bytes(*error))))
    }

    /// The data of the reply to a READ of `len` bytes, at least one; or the error.
    pub(crate) fn read_reply(&mut self, cookie: u64, len: usize) -> Result<Vec<u8>, u32> {
        let reply = self.reply();
        assert_eq!(reply.cookie, cookie);
        match (reply.error, self.form) {
            (0, Form::Simple) => Ok(self.data(len)),
            (0, _) => {
                assert_eq!(reply.payload.len(), len + 8);
                Ok(reply.payload[8..].to_vec())
            }
            (error, _) => Err(error),
        }
    }

    /// Reads.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        self.request(NBD_CMD_READ, 0, offset ^ 0x5a5a, offset, len as u64);
        self.read_reply(offset ^ 0x5a5a, len)
    }

    /// The next `len` bytes that the server sends.
    pub(crate) fn data(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).unwrap();
        data
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.data(8).try_into().unwrap())
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Whether the server has nothing more to say. Waits for it.
    pub(crate) fn is_at_end(&mut self) -> bool {
        let mut byte = [0; 1];
        let peeked = rustix::net::recv(&self.stream, &mut byte, rustix::net::RecvFlags::PEEK);
        peeked.is_ok_and(|(_, received)| received == 0)
    }

    /// Whether the server closes the connection, or has, without a word.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}
