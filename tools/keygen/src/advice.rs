//! What to do next with a new key, said on standard error.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

pub(crate) const FOR_RECOVERY_KEY: &str = "\
This recovery key is shown only now. Print it or write it down, and keep it away from the host.
Give it a key slot, for example with: cryptsetup luksAddKey disk.img
and type it as the new passphrase; from then on it opens the volume as any passphrase does.";

pub(crate) fn for_key_file(path: &Path, bytes: usize) -> String {
    let name = quoted(path);
    format!(
        "Wrote {bytes} random bytes to {name}. Whoever has this file can read the disk; without it, nobody can.\n\
         Keep a copy of it away from the host. Next: hostveil format --size 20G --key-file {name} disk.img"
    )
}

pub(crate) fn for_recovery_file(path: &Path, _bytes: usize) -> String {
    let name = quoted(path);
    format!(
        "Wrote a recovery key to {name}: text to be printed, and a key file as it is.\n\
         Keep it away from the host. Next: cryptsetup luksAddKey disk.img {name}"
    )
}

/// Advice that cannot be given does not undo the key.
pub(crate) fn give(advice: &str) {
    let _ = writeln!(std::io::stderr(), "{advice}");
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> Cow<'_, str> {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_can_be_pasted_into_a_shell() {
        for (path, text) in [("a/vm.key", "a/vm.key"), ("my key", "'my key'"), ("it's", r"'it'\''s'")] {
            assert_eq!(quoted(Path::new(path)), text);
        }
    }
}
