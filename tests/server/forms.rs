//! Compact and extended requests; simple, structured and extended replies.

use hostveil::nbd::Form;

use crate::client::*;
use crate::harness::{Running, SIZE};

#[test]
fn every_form_reads_what_it_has_written() {
    let running = Running::start();
    for form in FORMS {
        let mut client = running.attach(form);
        let data: Vec<u8> = (0..251).cycle().take(100_000).collect();
        client.write(NBD_CMD_FLAG_FUA, 1, 5000, &data);
        assert_eq!(client.outcome(), (1, 0));
        assert!(client.read(5000, data.len()).unwrap() == data);
        client.request(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FUA, 2, 6000, 50_000);
        client.request(NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 3, 1 << 20, 1 << 20);
        client.request(NBD_CMD_CACHE, NBD_CMD_FLAG_FUA, 4, 0, SIZE);
        let mut outcomes = [client.outcome(), client.outcome(), client.outcome()];
        outcomes.sort_unstable();
        assert_eq!(outcomes, [(2, 0), (3, 0), (4, 0)]);
        let mut expected = data;
        expected[1000..51_000].fill(0);
        assert!(client.read(5000, expected.len()).unwrap() == expected, "{form}");
    }
}

/// proto.md, Extended reply chunk message: the request's own offset, whatever the reply; seen by hand.
#[test]
fn an_extended_reply_repeats_the_requests_offset() {
    let running = Running::start();
    let mut client = running.attach(Form::Extended);
    for (kind, offset) in [(NBD_CMD_FLUSH, u64::MAX), (NBD_CMD_TRIM, 512), (NBD_CMD_TRIM, SIZE), (99, 7)] {
        client.request(kind, 0, 0x0102_0304_0506_0708, offset, 512);
        let header = client.data(EXTENDED_CHUNK_HEADER_LEN);
        assert_eq!(header[..4], NBD_EXTENDED_REPLY_MAGIC.to_be_bytes());
        assert_eq!(header[8..16], 0x0102_0304_0506_0708_u64.to_be_bytes());
        assert_eq!(header[16..24], offset.to_be_bytes());
        client.data(usize::try_from(Reader::new(&header[24..]).u64().unwrap()).unwrap());
    }
}

#[test]
fn a_request_in_a_refused_writes_payload_is_never_executed() {
    let running = Running::start();
    for form in FORMS {
        let mut client = running.attach(form);
        let smuggled = write(form, 0, 66, 4096, &[6; 512]);
        client.write(0, 1, SIZE, &smuggled);
        assert_eq!(client.outcome(), (1, ENOSPC));
        assert_eq!(client.read(4096, 512), Ok(vec![0; 512]), "the smuggled write must not have happened");
    }
}

/// The same of a WRITE that does not announce its payload, as QEMU sends it: taken or refused.
#[test]
fn a_request_in_an_unannounced_payload_is_never_executed() {
    let running = Running::start();
    let mut client = running.attach(Form::Extended);
    let smuggled = write(Form::Extended, 0, 66, 4096, &[6; 512]);
    for (cookie, offset, expected) in [(1, 20_480, 0), (2, SIZE, ENOSPC)] {
        client.request(NBD_CMD_WRITE, 0, cookie, offset, smuggled.len() as u64);
        client.send(&smuggled);
        assert_eq!(client.outcome(), (cookie, expected));
        assert_eq!(client.read(4096, 512), Ok(vec![0; 512]));
    }
    assert_eq!(client.read(20_480, smuggled.len()), Ok(smuggled));
}

/// A payload where none belongs is data all the same: of every command, and of one that nobody knows.
#[test]
fn a_request_in_an_unexpected_payload_is_never_executed() {
    let running = Running::start();
    let mut client = running.attach(Form::Extended);
    let smuggled = write(Form::Extended, 0, 66, 4096, &[6; 512]);
    for kind in (0..10).filter(|kind| ![NBD_CMD_WRITE, NBD_CMD_DISC].contains(kind)) {
        client.request(kind, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 4096, smuggled.len() as u64);
        client.send(&smuggled);
        assert_eq!(client.outcome(), (1, EINVAL), "command {kind}");
        assert_eq!(client.read(4096, 512), Ok(vec![0; 512]), "command {kind}");
    }
}

#[test]
fn a_payload_longer_than_any_ends_the_connection() {
    let running = Running::start();
    for kind in [NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_BLOCK_STATUS, 99] {
        for len in [(32 << 20) + 1, 1 << 32, u64::MAX] {
            let mut client = running.attach(Form::Extended);
            client.request(kind, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, len);
            assert!(client.is_closed(), "command {kind}, {len} bytes");
        }
    }
    running.lives_on();
}

/// Requests of the other form end the connection; they are not guessed at.
#[test]
fn the_forms_of_requests_do_not_mix() {
    let running = Running::start();
    for (session, sent) in [(Form::Extended, Form::Structured), (Form::Structured, Form::Extended)] {
        let mut client = running.attach(session);
        client.send(&[request(sent, NBD_CMD_FLUSH, 0, 1, 0, 0), vec![0; 8]].concat());
        assert!(client.is_closed(), "{session}");
    }
}

/// The extents that a BLOCK_STATUS reply tells of.
fn extents(form: Form, payload: &[u8]) -> Vec<(u64, u64)> {
    let mut reader = Reader::new(payload);
    assert_ne!(reader.u32(), Some(0), "the context's id");
    let mut extents = Vec::new();
    if form == Form::Extended {
        let count = reader.u32().unwrap();
        extents.extend((0..count).map(|_| (reader.u64().unwrap(), reader.u64().unwrap())));
    } else {
        while let (Some(len), Some(status)) = (reader.u32(), reader.u32()) {
            extents.push((len.into(), status.into()));
        }
    }
    reader.end().unwrap();
    extents
}

#[test]
fn block_status_tells_of_the_request_and_no_more() {
    let running = Running::start();
    for form in [Form::Structured, Form::Extended] {
        let mut client = running.attach(form);
        for (flags, offset, len) in
            [(0, 0, SIZE), (NBD_CMD_FLAG_REQ_ONE, 0, SIZE), (0, 100, 1), (NBD_CMD_FLAG_REQ_ONE, SIZE - 1, 1)]
        {
            client.request(NBD_CMD_BLOCK_STATUS, flags, 1, offset, len);
            let reply = client.reply();
            assert_eq!(extents(form, &reply.payload), [(len, 0)], "{form}");
        }
    }
}

#[test]
fn block_status_with_a_payload_is_filtered_by_it() {
    let running = Running::start();
    let mut client = running.attach(Form::Extended);
    client.request(NBD_CMD_BLOCK_STATUS, 0, 1, 0, SIZE);
    let id = client.reply().payload[..4].to_vec();
    let mut ask = |payload: &[&[u8]]| {
        let payload = payload.concat();
        client.request(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 2, 4096, payload.len() as u64);
        client.send(&payload);
        let reply = client.reply();
        if reply.error == 0 { Ok(extents(Form::Extended, &reply.payload)) } else { Err(reply.error) }
    };
    let len = |len: u64| len.to_be_bytes();
    assert_eq!(ask(&[&len(8192), &id]), Ok(vec![(8192, 0)]));
    assert_eq!(ask(&[&len(8192)]), Err(EINVAL), "no context");
    assert_eq!(ask(&[&len(8192), &id, &id]), Err(EINVAL), "one twice");
    assert_eq!(ask(&[&len(8192), &[0xff; 4]]), Err(EINVAL), "an unknown one");
    assert_eq!(ask(&[&len(8192), &id, &[0; 3]]), Err(EINVAL), "part of one");
    assert_eq!(ask(&[&len(0), &id]), Err(EINVAL), "nothing");
    assert_eq!(ask(&[&len(SIZE), &id]), Err(EINVAL), "beyond the end");
    assert_eq!(ask(&[&len(u64::MAX), &id]), Err(EINVAL), "far beyond the end");
    assert_eq!(ask(&[&len(1), &id]), Ok(vec![(1, 0)]), "the stream is in step");
}

/// proto.md, Command flags: a READ of 64 KiB, and here of any length, comes in one piece.
#[test]
fn a_read_that_must_not_be_split_is_not() {
    let running = Running::start();
    for form in [Form::Structured, Form::Extended] {
        let mut client = running.attach(form);
        for len in [1, 65536, 32 << 20] {
            client.request(NBD_CMD_READ, NBD_CMD_FLAG_DF, 7, 4096, len);
            // `reply` accepts one chunk alone.
            assert_eq!(client.read_reply(7, usize::try_from(len).unwrap()).unwrap().len() as u64, len);
        }
    }
}

#[test]
fn nothing_is_an_answer_to_a_request_for_nothing() {
    let running = Running::start();
    for form in FORMS {
        let mut client = running.attach(form);
        for offset in [4096, SIZE] {
            for kind in [NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES] {
                client.request(kind, 0, 1, offset, 0);
                assert_eq!(client.reply(), Reply { cookie: 1, error: 0, payload: vec![] }, "{form}, {kind}");
            }
            client.write(0, 2, offset, b"");
            assert_eq!(client.outcome(), (2, 0));
            client.request(NBD_CMD_BLOCK_STATUS, 0, 3, offset, 0);
            assert_eq!(client.outcome(), (3, EINVAL));
        }
    }
}

#[test]
fn a_read_only_export_refuses_what_writes() {
    let running = Running::read_only();
    for form in FORMS {
        let mut client = running.attach(form);
        client.write(0, 1, 4096, &write(form, 0, 66, 8192, b"smuggled"));
        assert_eq!(client.outcome(), (1, EPERM), "{form}");
        for kind in [NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES] {
            client.request(kind, 0, 2, 4096, 512);
            assert_eq!(client.outcome(), (2, EPERM), "{form}");
        }
        client.request(NBD_CMD_FLUSH, 0, 3, 0, 0);
        assert_eq!(client.outcome(), (3, 0));
        assert_eq!(client.read(4096, 4096), Ok(vec![0; 4096]));
    }
    assert!(running.probe.data.lock().unwrap().iter().all(|byte| *byte == 0));
}
