//! Man pages of programs whose help is not clap's alone: made from the text of the help.

/// The page of a program. Its help is one without the options of the stock program that it starts.
pub(super) fn page(program: &str, summary: &str, stock: &str, help: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".TH {program} 1 \"\" \"virtio-inter {version}\" virtio-inter\n.SH NAME\n{program} \\- \
         {summary}\n.SH DESCRIPTION\n.nh\n.ad l\n"
    );
    let lines: Vec<&str> = help.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let next = lines.get(number + 1).copied().unwrap_or("");
        page += &match line.trim_start() {
            "" => String::new(),
            _ if line.contains(" are not shown: ") => {
                format!(".SH NOTES\nEverything else is as with {stock}.\n")
            }
            item if indent(line) > 0
                && !continues(number.checked_sub(1).map(|n| lines[n]), line) =>
            {
                entry(item, indent(next) > indent(line))
            }
            text => heading_or_text(text, number == 0 || lines[number - 1].is_empty()),
        };
    }
    page + ".SH SEE ALSO\n.BR virtio\\-inter (1)\n"
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Whether a line goes on with the text of the one before, which is an option without a text.
fn continues(before: Option<&str>, line: &str) -> bool {
    before.is_some_and(|before| indent(before) > 0 && indent(before) < indent(line))
}

/// An option, command or variable, with its text beside or below it.
fn entry(item: &str, is_text_below: bool) -> String {
    match item.split_once("  ") {
        Some((name, text)) if !is_text_below => {
            let text = escaped(text.trim_start());
            format!(".TP\n\\fB{}\\fR\n{text}\n", escaped(name))
        }
        _ => format!(".TP\n\\fB{}\\fR\n", escaped(item)),
    }
}

/// A line of text, or what begins a section: `Usage: …`, `Options:`, `Exit status: …`.
fn heading_or_text(text: &str, is_first: bool) -> String {
    let known = ["Usage: ", "Exit status: "];
    let known = known
        .iter()
        .find_map(|word| Some((*word, text.strip_prefix(word)?)));
    match (known, text.strip_suffix(':')) {
        (Some((word, rest)), _) => {
            let name = word.trim_end_matches(": ").to_uppercase();
            let name = name.replace("USAGE", "SYNOPSIS");
            format!(".SH {name}\n{}\n", escaped(rest))
        }
        (None, Some(heading)) => {
            // Of a long one, what it says beside the name is the section's first sentence.
            let (name, rest) = heading.split_once(", ").unwrap_or((heading, ""));
            let mut section = format!(".SH {}\n", title(name));
            if let Some(first) = rest.chars().next() {
                let rest = &rest[first.len_utf8()..];
                section += &format!("{}{}.\n", first.to_uppercase(), escaped(rest));
            }
            section
        }
        (None, None) if is_first => format!(".PP\n{}\n", escaped(text)),
        (None, None) => format!("{}\n", escaped(text)),
    }
}

/// In capitals, but for options.
fn title(name: &str) -> String {
    let words = name.split(' ').map(|word| match word.starts_with('-') {
        true => escaped(word),
        false => word.to_uppercase(),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('-', "\\-");
    // Long lists of keys have no spaces: a line may end behind a comma.
    let text = text.replace(',', ",\\:");
    // A dot or an apostrophe at the beginning would be a request.
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_has_the_sections_and_options_of_the_help() {
        let help = "Start\n\nUsage: a [OPTIONS]\n\nOptions:\n      --api <x>\n          The \
                    socket\n  -h, --help  Print\n\nKeys of --key, separated by commas:\n  \
                    id=<a>  Name\n\nThe a starts\n.b for it.\n\nExit status: 0\nor 1.\n\n\
                    The options of b are not shown: No b\n";
        let expected = "\
            .SH DESCRIPTION\n.nh\n.ad l\n.PP\nStart\n\
            .SH SYNOPSIS\na [OPTIONS]\n\
            .SH OPTIONS\n.TP\n\\fB\\-\\-api <x>\\fR\nThe socket\n\
            .TP\n\\fB\\-h,\\: \\-\\-help\\fR\nPrint\n\
            .SH KEYS OF \\-\\-key\nSeparated by commas.\n.TP\n\\fBid=<a>\\fR\nName\n\
            .PP\nThe a starts\n\\&.b for it.\n\
            .SH EXIT STATUS\n0\nor 1.\n\
            .SH NOTES\nEverything else is as with b.\n.SH SEE ALSO\n";
        let page = page("a", "does it", "b", help);
        assert!(page.contains(expected), "{page}");
        assert!(page.contains("\n.SH NAME\na \\- does it\n"), "{page}");
    }
}
