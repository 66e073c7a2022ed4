//! The programs that take part beside this one: where they lie, which Debian package brings them, and
//! which `hostveil` is measured.

use std::path::{Path, PathBuf};
use std::process::Command;

use hostveil::error::{Error, ErrorKind, Result};

/// Which Debian package brings a program.
const PACKAGES: [(&str, &str); 5] = [
    ("fio", "fio"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("qemu-img", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
];

/// Where a program lies.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|place| place.join(program)).find(|path| path.is_file())
}

/// A missing program and what brings it, for people.
pub(crate) fn missing(program: &str) -> String {
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
    format!("{program} is missing: install the Debian package {package}")
}

/// The `hostveil` to be measured: the one given, the one beside this program, or the one on PATH.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is none.
pub(crate) fn hostveil(given: Option<&Path>) -> Result<PathBuf> {
    let beside = || {
        let sibling = std::env::current_exe().ok()?.with_file_name("hostveil");
        sibling.is_file().then_some(sibling)
    };
    let found = match given {
        Some(path) => Some(path.to_owned()).filter(|path| path.is_file()),
        None => beside().or_else(|| find("hostveil")),
    };
    found.ok_or_else(|| {
        let what = given.map_or("there is no hostveil beside this program or on PATH".to_owned(), |path| {
            format!("{} is no program", path.display())
        });
        Error::new(ErrorKind::NotFound, what)
            .hint("build it with cargo build --release, or name it with --hostveil")
    })
}

/// A program's path and what it says of its version.
pub(crate) fn describe(path: &Path) -> String {
    let output = Command::new(path).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    format!("{}: {}", path.display(), text.lines().next().unwrap_or("tells no version").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        assert_eq!(missing("nbdcopy"), "nbdcopy is missing: install the Debian package libnbd-bin");
        assert!(find("no-such-program").is_none() && find("sh").is_some());
    }

    #[test]
    fn a_hostveil_that_is_given_is_the_one_or_none() {
        assert_eq!(hostveil(Some(Path::new("/bin/sh"))).unwrap(), Path::new("/bin/sh"));
        let error = hostveil(Some(Path::new("/no/such"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
