//! Examples in documents: the MAC address that a VMM gives its guest is that of a port before it on
//! the page, and of the port at its socket. With another one, whoever copies the commands gets a
//! VM without a network.

use std::collections::BTreeMap;

use super::tree::Tree;

/// All findings, as `path:line: text`.
pub(super) fn findings(tree: &Tree) -> Vec<String> {
    let documents = tree
        .ending(".md")
        .filter(|(path, _)| *path != "CHANGELOG.md");
    documents
        .flat_map(|(path, text)| page(path, text))
        .collect()
}

/// The findings of one page; of one that starts no port with an address, none.
fn page(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    // The address of each port so far, by its socket or by the line that starts it.
    let mut ports: BTreeMap<String, &str> = BTreeMap::new();
    for (line, command) in commands(text) {
        let words = || command.clone().into_iter().flat_map(words);
        let after = |option: &str| words().skip_while(|word| *word != option).nth(1);
        if let Some(mac) = after("--mac").filter(|mac| is_mac(mac)) {
            let socket = after("--socket").map_or_else(|| line.to_string(), str::to_owned);
            ports.insert(socket, mac);
        }
        // Values of `--inter-vm` are those of a port.
        if ports.is_empty() || words().any(|word| word == "--inter-vm") {
            continue;
        }
        let value = |key: &str| words().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let Some(mac) = value("mac").filter(|mac| is_mac(mac)) else {
            continue;
        };
        let socket = value("path")
            .or_else(|| value("socket"))
            .unwrap_or_default();
        let is_right = match ports.get(socket) {
            Some(port) => *port == mac,
            None => ports.values().any(|port| *port == mac),
        };
        if !is_right {
            found.push(format!(
                "{path}:{line}: the VMM has mac={mac}, and its port has another --mac"
            ));
        }
    }
    found
}

/// The lines of a page, those of one command together, with the number of the first.
fn commands(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let mut lines = text.lines().enumerate();
    std::iter::from_fn(move || {
        let (index, line) = lines.next()?;
        let mut command = vec![line];
        while command.last()?.ends_with('\\') {
            command.push(lines.next()?.1);
        }
        Some((index + 1, command))
    })
}

/// What options, their values, and the parts of values are separated by.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split([' ', ',', '\'', '"', '`', '\\'])
        .filter(|word| !word.is_empty())
}

fn is_mac(text: &str) -> bool {
    let parts = || text.split(':');
    parts().count() == 6
        && parts().all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    const PORTS: &str = "\
        port --mac 02:00:00:00:00:01 --socket /run/vm1 &\n\
        port --socket /run/vm2 \\\n  --mac 02:00:00:00:00:02 &\n";

    fn about(text: &str) -> Vec<String> {
        findings(&tree(&[("a.md", text)]))
    }

    #[test]
    fn address_of_a_vmm_is_that_of_the_port_at_its_socket() {
        let vmm = |socket: &str, mac: &str| {
            about(&format!(
                "{PORTS}qemu -chardev socket,id=p,path={socket} \\\n -device x,netdev=n,mac={mac}\n"
            ))
        };
        assert_eq!(vmm("/run/vm1", "02:00:00:00:00:01"), [""; 0]);
        assert_eq!(vmm("/run/vm2", "02:00:00:00:00:02"), [""; 0]);
        let expected = "a.md:4: the VMM has mac=02:00:00:00:00:01, and its port has another --mac";
        assert_eq!(vmm("/run/vm2", "02:00:00:00:00:01"), [expected]);
        // A port whose socket the page does not say may be any.
        assert_eq!(vmm("/run/vm3", "02:00:00:00:00:01"), [""; 0]);
        assert_eq!(vmm("/run/vm3", "02:00:00:00:00:03").len(), 1);
    }

    #[test]
    fn address_of_a_vmm_is_that_of_a_port_before_it() {
        let unit = "echo 'OPTIONS=--segment default --mac 52:54:00:00:00:01' > vm1.conf\n";
        let vmm = "qemu -device virtio-net-pci,netdev=net,mac=02:00:00:00:00:01\n";
        assert_eq!(about(&format!("{unit}{vmm}{PORTS}")).len(), 1);
        assert_eq!(about(&format!("{unit}{PORTS}{vmm}")), [""; 0]);
        let inline = "`--net vhost_user=on,socket=/run/vm1,mac=02:00:00:00:00:02`\n";
        assert_eq!(about(&format!("{PORTS}{inline}")).len(), 1);
    }

    #[test]
    fn addresses_that_are_no_vmms_are_left_alone() {
        let launcher = "cloud-hypervisor-ext --inter-vm segment=web,mac=02:00:00:00:00:09\n";
        let list = "`allow_mac=02:00:00:00:00:09`, mac=MAC, mac=${MAC}\n";
        assert_eq!(about(&format!("{PORTS}{launcher}{list}")), [""; 0]);
        assert_eq!(about("`mac=02:00:00:00:00:01`\n"), [""; 0]);
        assert_eq!(about(&format!("{PORTS}`mac=02:00:00:00:00:+1`\n")), [""; 0]);
    }
}
