//! Suggestions for words that were probably mistyped.

/// Similarity above which a known word is worth suggesting, from 0 (nothing in common) to 1
/// (equal). clap uses the same measure and value for its own suggestions.
const SIMILAR: f64 = 0.7;

/// Insertions, deletions, substitutions and swaps of neighbours that one typing error consists of,
/// at most.
const TYPING_ERROR: usize = 2;

/// Characters of the longer word from which on a word with one error is worth suggesting: of two,
/// half would be wrong.
const SHORT: usize = 3;

/// The known word that is most similar to `word`; None if none is similar.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (similarity(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// From 0 to 1. Upper and lower case are the same. Jaro's measure finds little in common between
/// short words such as "wbe" and "web": one error makes words similar, whatever their length.
fn similarity(word: &str, candidate: &str) -> f64 {
    let (word, candidate) = (word.to_lowercase(), candidate.to_lowercase());
    let jaro = strsim::jaro(&word, &candidate);
    let length = word.chars().count().max(candidate.chars().count());
    if length >= SHORT && strsim::damerau_levenshtein(&word, &candidate) <= 1 {
        return jaro.max(1.0 - 1.0 / (length + 1) as f64);
    }
    jaro
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
            // One error in a short word.
            ("mut", Some("mtu")),
            ("amc", Some("mac")),
            ("MTU", Some("mtu")),
            ("ma", Some("mac")),
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
