//! Option haggling: what is refused leaves the connection usable.

use hostveil::nbd::Form;

use crate::client::*;
use crate::harness::Running;

#[test]
fn a_client_may_try_everything_and_still_get_its_export() {
    let running = Running::start();
    let mut client = Client::connect(&running.socket);
    client.send(&[0, 0, 0, 3]);
    let mut ask = |kind, data: &[u8]| client.option(kind, data).0;
    assert_eq!(ask(NBD_OPT_LIST, b""), NBD_REP_ERR_POLICY);
    assert_eq!(ask(NBD_OPT_STARTTLS, b""), NBD_REP_ERR_POLICY);
    assert_eq!(ask(77, &vec![7; 100_000]), NBD_REP_ERR_UNSUP);
    assert_eq!(ask(NBD_OPT_GO, &named("nosuch")), NBD_REP_ERR_UNKNOWN);
    assert_eq!(ask(NBD_OPT_INFO, &vec![0xff; 20_000]), NBD_REP_ERR_TOO_BIG);
    assert_eq!(ask(NBD_OPT_INFO, &[0xff; 200]), NBD_REP_ERR_INVALID);
    assert_eq!(ask(NBD_OPT_SET_META_CONTEXT, &allocation("disk")), NBD_REP_ERR_INVALID, "too early");
    assert_eq!(ask(NBD_OPT_STRUCTURED_REPLY, b"x"), NBD_REP_ERR_INVALID);
    assert_eq!(ask(NBD_OPT_STRUCTURED_REPLY, b""), NBD_REP_ACK);
    assert_eq!(ask(NBD_OPT_EXTENDED_HEADERS, b"x"), NBD_REP_ERR_INVALID);
    assert_eq!(ask(NBD_OPT_EXTENDED_HEADERS, b""), NBD_REP_ACK);
    assert_eq!(ask(NBD_OPT_STRUCTURED_REPLY, b""), NBD_REP_ERR_EXT_HEADER_REQD);
    assert_eq!(ask(NBD_OPT_LIST_META_CONTEXT, &allocation("disk")), NBD_REP_ACK);
    assert_eq!(ask(NBD_OPT_INFO, &named("disk")), NBD_REP_ACK);
    assert_eq!(ask(NBD_OPT_GO, &named("disk")), NBD_REP_ACK);
    client.send(&request(Form::Extended, NBD_CMD_FLUSH, 0, 1, 0, 0));
    assert_eq!(client.data(EXTENDED_CHUNK_HEADER_LEN)[..4], NBD_EXTENDED_REPLY_MAGIC.to_be_bytes());
}

#[test]
fn after_extended_headers_export_name_disconnects() {
    let running = Running::start();
    let mut client = Client::connect(&running.socket);
    client.send(&[0, 0, 0, 3]);
    assert_eq!(client.option(NBD_OPT_EXTENDED_HEADERS, b"").0, NBD_REP_ACK);
    client.send(&option(NBD_OPT_EXPORT_NAME, b"disk"));
    assert!(client.is_closed());
}

#[test]
fn abort_is_acknowledged_and_ends_the_connection() {
    let running = Running::start();
    let mut client = Client::connect(&running.socket);
    client.send(&[0, 0, 0, 3]);
    assert_eq!(client.option(NBD_OPT_ABORT, b"").0, NBD_REP_ACK);
    assert!(client.is_closed());
}

#[test]
fn export_name_works_for_clients_that_know_nothing_newer() {
    let running = Running::start();
    let mut client = Client::connect(&running.socket);
    client.send(&[&[0, 0, 0, 3][..], &option(NBD_OPT_EXPORT_NAME, b"disk")].concat());
    assert_eq!(client.data(10)[..8], crate::harness::SIZE.to_be_bytes());
    assert!(client.read(4096, 512).is_ok());
}
