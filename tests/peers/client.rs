//! The smallest NBD client: requests and replies by hand, so that a test can stop in the middle,
//! and see errors as they cross the wire.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::Server;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;
/// Command flag: this write is durable once it is answered.
pub(crate) const FUA: u16 = 1;

const OPT_GO: u32 = 7;
const OPT_EXTENDED_HEADERS: u32 = 11;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;

/// A connection in the transmission phase, with simple replies.
pub(crate) struct Client {
    stream: UnixStream,
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// 0, or the error's number on the wire.
    pub(crate) error: u32,
    pub(crate) cookie: u64,
}

impl Client {
    /// Connects to a server's export.
    pub(crate) fn connect(server: &Server) -> Self {
        let stream = UnixStream::connect(server.socket()).unwrap();
        let mut client = Self { stream };
        client.negotiate(server.name()).unwrap();
        client
    }

    fn negotiate(&mut self, name: &str) -> io::Result<()> {
        let greeting = self.take::<18>()?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes.
        self.stream.write_all(&3_u32.to_be_bytes())?;
        self.go(name)
    }

    fn go(&mut self, name: &str) -> io::Result<()> {
        let length = u32::try_from(name.len()).unwrap();
        self.option(OPT_GO, &[&length.to_be_bytes(), name.as_bytes(), &[0, 0]].concat())
    }

    /// Sends an option and waits until it is acknowledged.
    fn option(&mut self, kind: u32, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).unwrap();
        self.stream
            .write_all(&[b"IHAVEOPT", &kind.to_be_bytes()[..], &length.to_be_bytes(), data].concat())?;
        loop {
            let header = self.take::<20>()?;
            let kind = u32::from_be_bytes(header[12..16].try_into().unwrap());
            let length = u32::from_be_bytes(header[16..].try_into().unwrap());
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data)?;
            match kind {
                REP_ACK => return Ok(()),
                REP_INFO => {}
                other => panic!("the server answered {other:#x} to option {kind}"),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends a request; `data` is a write's payload.
    pub(crate) fn send(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        at: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<()> {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([flags.to_be_bytes(), command.to_be_bytes()].concat());
        request.extend([cookie.to_be_bytes(), at.to_be_bytes()].concat());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)
    }

    /// Sends requests together, each with its payload, and takes as many bytes of replies.
    pub(crate) fn exchange(&mut self, requests: &[u8], replies: usize) {
        self.stream.write_all(requests).unwrap();
        self.stream.read_exact(&mut vec![0; replies]).unwrap();
    }

    /// The next reply's header.
    pub(crate) fn receive(&mut self) -> io::Result<Reply> {
        let header = self.take::<16>()?;
        assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes(), "no simple reply: {header:?}");
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
        Ok(Reply { error, cookie })
    }

    /// Writes; the error's number on the wire when that is refused.
    pub(crate) fn write(&mut self, at: u64, data: &[u8], flags: u16) -> Result<(), u32> {
        self.send(WRITE, flags, at, at, u32::try_from(data.len()).unwrap(), data).unwrap();
        self.answer()
    }

    /// Flushes; the error's number on the wire when that fails.
    pub(crate) fn flush(&mut self) -> Result<(), u32> {
        self.send(FLUSH, 0, 0, 0, 0, &[]).unwrap();
        self.answer()
    }

    /// Reads; the error's number on the wire when that fails.
    pub(crate) fn read(&mut self, at: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.send(READ, 0, at, at, len, &[]).unwrap();
        self.answer()?;
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).unwrap();
        Ok(data)
    }

    fn answer(&mut self) -> Result<(), u32> {
        match self.receive().unwrap().error {
            0 => Ok(()),
            error => Err(error),
        }
    }
}

/// Connects to the default export of any server, with extended headers, and trims. Returns the error's
/// number, or 0.
pub(crate) fn trim_with_extended_headers(socket: &Path, at: u64, len: u64) -> u32 {
    const TRIM: u16 = 4;
    const ERROR: u16 = 0x8001;
    let mut client = Client { stream: UnixStream::connect(socket).unwrap() };
    client.take::<18>().unwrap();
    client.stream.write_all(&3_u32.to_be_bytes()).unwrap();
    client.option(OPT_EXTENDED_HEADERS, b"").unwrap();
    client.go("").unwrap();
    let mut request = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    request.extend([0_u16.to_be_bytes(), TRIM.to_be_bytes()].concat());
    request.extend([77, at, len].map(u64::to_be_bytes).concat());
    client.stream.write_all(&request).unwrap();
    let reply = client.take::<32>().unwrap();
    assert_eq!(reply[..6], [&0x6e8a_278c_u32.to_be_bytes()[..], &[0, 1]].concat());
    match u16::from_be_bytes([reply[6], reply[7]]) {
        ERROR => u32::from_be_bytes(client.take::<4>().unwrap()),
        _ => 0,
    }
}
