//! Under a service manager: sockets that it opened (`LISTEN_FDS`), and being told when the server is
//! ready and when it stops (`NOTIFY_SOCKET`).

use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::Place;

/// Opens a listening socket as descriptor 3, as the service manager would, and becomes the server.
const ACTIVATE: &str = r"
    use Socket; use POSIX ();
    my ($path, @command) = @ARGV;
    $^F = 100;
    socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or die $!;
    bind($socket, sockaddr_un($path)) or die $!;
    listen($socket, 5) or die $!;
    if (fileno($socket) != 3) { POSIX::dup2(fileno($socket), 3) or die $!; }
    ($ENV{LISTEN_PID}, $ENV{LISTEN_FDS}) = ($$, 1);
    exec @command or die $!;
";

#[test]
fn an_inherited_socket_is_served_and_left_in_place() {
    let place = Place::with_volume();
    let notify = UnixDatagram::bind(place.path("notify")).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let socket = place.path("activated.sock");
    let mut command = std::process::Command::new("perl");
    command.current_dir(place.path("")).args(["-e", ACTIVATE]).arg(&socket);
    command.arg(env!("CARGO_BIN_EXE_hostveil")).args(["serve", "--json", "--key-file", "vm.key", "disk.img"]);
    command.env("NOTIFY_SOCKET", place.path("notify")).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();

    let mut text = [0; 256];
    let len = notify.recv(&mut text).unwrap();
    assert!(text[..len].starts_with(b"READY=1\n"), "{:?}", String::from_utf8_lossy(&text[..len]));
    let mut stream = UnixStream::connect(&socket).unwrap();
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGIC");
    drop(stream);
    // The default socket was not made beside it.
    assert!(!place.path("hostveil/disk.img.sock").exists());

    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let len = notify.recv(&mut text).unwrap();
    assert!(text[..len].starts_with(b"STOPPING=1\n"));
    assert!(child.wait().unwrap().success());
    assert!(socket.exists(), "the socket belongs to the service manager");
}

#[test]
fn what_is_meant_for_another_process_is_left_alone() {
    let place = Place::with_volume();
    let mut command = place.command("serve --json --key-file vm.key disk.img");
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "5");
    let mut child = command.spawn().unwrap();
    let mut line = [0; 16];
    child.stdout.take().unwrap().read_exact(&mut line).unwrap();
    assert!(place.path("hostveil/disk.img.sock").exists());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_inherited_descriptor_that_does_not_listen_is_refused() {
    let place = Place::with_volume();
    let mut command = std::process::Command::new("perl");
    let script = r"$^F = 100; open(my $f, '<', '/dev/null'); if (fileno($f) != 3) { require POSIX; POSIX::dup2(fileno($f), 3) }
        ($ENV{LISTEN_PID}, $ENV{LISTEN_FDS}) = ($$, 1); exec @ARGV or die $!;";
    command.current_dir(place.path("")).args(["-e", script]).arg(env!("CARGO_BIN_EXE_hostveil"));
    let output = command.args(["serve", "--key-file", "vm.key", "disk.img"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("an inherited descriptor is no listening socket"), "{error}");
}
