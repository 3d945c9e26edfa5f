//! Parses option strings, `key=value,key="va,lue",list=[1,2]`, like Cloud Hypervisor's device
//! parameters.
//!
//! Commas separate options, except within quotes or brackets. Quotes around a value are removed;
//! two quotes within quotes are one. The last value of a key counts; an empty value counts as not
//! given.

use std::str::FromStr;

use thiserror::Error;
use virtio_inter_args::nearest;

/// An error in an option string, with Cloud Hypervisor's texts.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum OptionError {
    /// The key does not exist.
    #[error("Unknown option: {key}{suggestion}")]
    Unknown {
        /// The key.
        key: String,
        /// A suggestion, as text.
        suggestion: String,
    },
    /// Quotes or brackets without their other half, or a key without `=`.
    #[error("Invalid syntax: {0}")]
    Syntax(String),
    /// A value that is not of the key's type.
    #[error("Unable to convert {value} for {key}")]
    Conversion {
        /// The key.
        key: String,
        /// Its value, quotes included.
        value: String,
    },
    /// A value of the right type that is invalid.
    #[error("Invalid value: {0}")]
    Value(String),
}

/// The options of one string.
#[derive(Debug, Default)]
pub struct Options {
    /// Keys and unparsed values, in their order.
    given: Vec<(String, String)>,
}

impl Options {
    /// Parses a string in which only `keys` may occur.
    ///
    /// # Errors
    ///
    /// [`OptionError::Syntax`], [`OptionError::Unknown`] with the nearest of `keys`.
    pub fn parse(text: &str, keys: &[&str]) -> Result<Self, OptionError> {
        let mut given = Vec::new();
        if text.trim().is_empty() {
            return Ok(Self { given });
        }
        for option in split(text)? {
            // An unknown key is reported before a syntax error, as in Cloud Hypervisor.
            let key = option.split('=').next().unwrap_or_default();
            if !keys.contains(&key) {
                return Err(OptionError::Unknown {
                    key: key.to_owned(),
                    suggestion: suggestion(key, keys),
                });
            }
            let Some((key, value)) = option.split_once('=') else {
                return Err(OptionError::Syntax(option));
            };
            given.push((key.to_owned(), value.trim().to_owned()));
        }
        Ok(Self { given })
    }

    /// Parses a string whose keys another program checks. Ignores options without `=`.
    ///
    /// # Errors
    ///
    /// [`OptionError::Syntax`].
    pub fn parse_known(text: &str) -> Result<Self, OptionError> {
        let mut given = Vec::new();
        for option in split(text)? {
            if let Some((key, value)) = option.split_once('=') {
                given.push((key.to_owned(), value.trim().to_owned()));
            }
        }
        Ok(Self { given })
    }

    fn raw(&self, key: &str) -> Option<&str> {
        let (_, value) = self.given.iter().rev().find(|(given, _)| given == key)?;
        (!value.is_empty()).then_some(value)
    }

    /// The first key whose value is empty.
    pub fn empty(&self) -> Option<&str> {
        let (key, _) = self.given.iter().find(|(key, _)| self.raw(key).is_none())?;
        Some(key)
    }

    /// A value without its quotes; `None` if it was not given.
    pub fn get(&self, key: &str) -> Option<String> {
        self.raw(key).map(dequote)
    }

    /// A value of another type than text.
    ///
    /// # Errors
    ///
    /// [`OptionError::Conversion`].
    pub fn convert<T: FromStr>(&self, key: &str) -> Result<Option<T>, OptionError> {
        self.raw(key)
            .map(|value| {
                dequote(value).parse().map_err(|_| OptionError::Conversion {
                    key: key.to_owned(),
                    value: value.to_owned(),
                })
            })
            .transpose()
    }

    /// `on`, `true`, `off` or `false`, in upper or lower case; `None` if it was not given.
    ///
    /// # Errors
    ///
    /// [`OptionError::Conversion`].
    pub fn toggle(&self, key: &str) -> Result<Option<bool>, OptionError> {
        self.raw(key)
            .map(|value| match dequote(value).to_ascii_lowercase().as_str() {
                "on" | "true" => Ok(true),
                "off" | "false" => Ok(false),
                _ => Err(OptionError::Conversion {
                    key: key.to_owned(),
                    value: value.to_owned(),
                }),
            })
            .transpose()
    }
}

/// Suggests the most similar key, or lists all keys.
fn suggestion(key: &str, keys: &[&str]) -> String {
    nearest(key, keys.iter().copied()).map_or_else(
        || format!("; there are {}", keys.join(", ")),
        |nearest| format!("; did you mean {nearest}?"),
    )
}

/// Splits a string at the commas outside of quotes and brackets.
fn split(text: &str) -> Result<Vec<String>, OptionError> {
    let syntax = || OptionError::Syntax(text.to_owned());
    let mut parts = vec![String::new()];
    let (mut depth, mut quoted) = (0u32, false);
    for character in text.trim().chars() {
        match character {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or_else(syntax)?,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        // Never empty.
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    if quoted || depth != 0 {
        return Err(syntax());
    }
    Ok(parts)
}

/// A value without its quotes, which are balanced: [`split`] has checked that.
fn dequote(value: &str) -> String {
    let mut plain = String::new();
    let (mut quoted, mut previous) = (false, '\0');
    for character in value.chars() {
        if character == '"' {
            if previous == '"' && !quoted {
                plain.push('"');
            }
            quoted = !quoted;
        } else {
            plain.push(character);
        }
        previous = character;
    }
    plain
}

/// Quotes a value so that [`Options::get`] returns it unchanged.
pub fn quote(value: &str) -> String {
    if value.contains([',', '[', ']', '"']) || value.trim() != value {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] = &["a", "b", "list"];

    fn parse(text: &str) -> Result<Options, OptionError> {
        Options::parse(text, KEYS)
    }

    #[test]
    fn commas_part_options_but_not_within_quotes_or_brackets() {
        let options = parse(r#" a=x,list=[1,[2,3]],b="p,q" "#).unwrap();
        assert_eq!(options.get("a").as_deref(), Some("x"));
        assert_eq!(options.get("list").as_deref(), Some("[1,[2,3]]"));
        assert_eq!(options.get("b").as_deref(), Some("p,q"));
    }

    #[test]
    fn brackets_within_quotes_mean_nothing() {
        assert_eq!(
            parse(r#"a="[",b=x"#).unwrap().get("a").as_deref(),
            Some("[")
        );
    }

    #[test]
    fn doubled_quote_within_quotes_is_one() {
        assert_eq!(
            parse(r#"a="say ""hi""""#).unwrap().get("a").as_deref(),
            Some(r#"say "hi""#)
        );
    }

    #[test]
    fn quoted_values_come_back() {
        for text in ["plain", "a,b", "[x", "x]", "say \"hi\"", "\"", " edge "] {
            let options = parse(&format!("a={},b=z", quote(text))).unwrap();
            assert_eq!(options.get("a").as_deref(), Some(text), "{}", quote(text));
        }
    }

    #[test]
    fn option_given_twice_has_its_last_value_and_an_empty_one_none() {
        let options = parse("a=1,a=2,b=").unwrap();
        assert_eq!(options.get("a").as_deref(), Some("2"));
        assert_eq!(options.get("b"), None);
        assert_eq!(options.convert::<u16>("b"), Ok(None));
        assert_eq!(options.empty(), Some("b"));
        assert_eq!(parse("a=1,a=").unwrap().get("a"), None);
        assert_eq!(parse("a=,a=1").unwrap().empty(), None);
    }

    #[test]
    fn option_errors_have_cloud_hypervisors_words() {
        for (text, error) in [
            ("c=1", "Unknown option: c; there are a, b, list"),
            ("c", "Unknown option: c; there are a, b, list"),
            ("lst=[1]", "Unknown option: lst; did you mean list?"),
            ("a=1,,b=2", "Unknown option: ; there are a, b, list"),
            ("a", "Invalid syntax: a"),
            ("a=\"x", "Invalid syntax: a=\"x"),
            ("a=[1", "Invalid syntax: a=[1"),
            ("a=1]", "Invalid syntax: a=1]"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), error);
        }
        let options = parse("a=70000,b=maybe").unwrap();
        assert_eq!(
            options.convert::<u16>("a").unwrap_err().to_string(),
            "Unable to convert 70000 for a"
        );
        assert_eq!(
            options.toggle("b").unwrap_err().to_string(),
            "Unable to convert maybe for b"
        );
    }

    #[test]
    fn toggles_are_parsed_in_any_case() {
        for (text, value) in [
            ("on", Some(true)),
            ("TRUE", Some(true)),
            ("off", Some(false)),
            ("False", Some(false)),
            ("", None),
        ] {
            assert_eq!(parse(&format!("a={text}")).unwrap().toggle("a"), Ok(value));
        }
    }

    #[test]
    fn option_string_may_be_blank() {
        assert!(parse("  ").unwrap().given.is_empty());
    }
}
