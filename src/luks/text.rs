//! Text from headers, made fit for messages: the host chose it, and a terminal obeys what it prints.

/// Longer text is cut.
const LONGEST: usize = 100;

/// `text` without control characters and other surprises, and not too long.
pub(super) fn printable(text: &str) -> String {
    let harmless = |c: char| if c.is_control() || is_invisible(c) { char::REPLACEMENT_CHARACTER } else { c };
    let mut shown: String = text.chars().take(LONGEST).map(harmless).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// Whether a character changes how others are shown: directions, joiners, marks of order.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_get_no_orders() {
        assert_eq!(printable("backup of über-disk"), "backup of über-disk");
        assert_eq!(printable("a\x1b[2Jb\n\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c");
        // Found by fuzzing: the Arabic letter mark, too, turns the writing's direction.
        assert_eq!(printable("a\u{061c}b"), "a\u{fffd}b");
        assert_eq!(printable(&"x".repeat(1000)).chars().count(), LONGEST + 1);
    }
}
