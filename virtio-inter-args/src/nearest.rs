//! Suggestions for words that were probably mistyped.

/// Similarity above which a known word is worth suggesting, from 0 (nothing in common) to 1
/// (equal). clap uses the same measure and value for its own suggestions.
const SIMILAR: f64 = 0.7;

/// Insertions, deletions, substitutions and swaps of neighbours that one typing error consists of,
/// at most.
const TYPING_ERROR: usize = 2;

/// The known word that is most similar to `word`; None if none is similar.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Whether `word` is `known` with a typing error. Stricter than [`nearest`]: for words that another
/// program may know.
pub fn is_typing_error(word: &str, known: &str) -> bool {
    word != known && strsim::damerau_levenshtein(word, known) <= TYPING_ERROR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_the_most_similar_known_word() {
        let known = ["segment", "mac", "mtu", "pci_segment", "num_queues"];
        for (word, expected) in [
            ("segmen", Some("segment")),
            ("segement", Some("segment")),
            ("pci_segmnt", Some("pci_segment")),
            ("queues", Some("num_queues")),
            ("frobnicate", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
    }

    #[test]
    fn typing_error_is_a_word_that_differs_little() {
        for word in [
            "--inter-vn",
            "--intervm",
            "--inter-vms",
            "--inter_vm",
            "--itner-vm",
        ] {
            assert!(is_typing_error(word, "--inter-vm"), "{word}");
        }
        for word in ["--inter-vm", "--initramfs", "--net", "--kernel", "--memory"] {
            assert!(!is_typing_error(word, "--inter-vm"), "{word}");
        }
    }
}
