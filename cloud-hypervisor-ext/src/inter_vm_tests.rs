//! Tests of `--inter-vm`.

use super::*;

fn fails(text: &str) -> String {
    let error = InterVm::parse(text).unwrap_err();
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn inter_vm_parses_all_keys() {
    let device = InterVm::parse(
        "segment=/run/a,mac=02:00:00:00:00:01,id=net7,mtu=9000,num_queues=4,queue_size=512,\
         socket=\"/tmp/a,b\",pci_segment=1,pci_device_id=9",
    )
    .unwrap();
    assert_eq!(device.segment, Path::new("/run/a"));
    assert_eq!(device.socket.as_deref(), Some(Path::new("/tmp/a,b")));
    assert_eq!((device.num_queues, device.queue_size), (Some(4), Some(512)));
    assert_eq!(
        (device.pci_segment, device.pci_device_id),
        (Some(1), Some(9))
    );
}

#[test]
fn inter_vm_parses_what_it_prints() {
    for text in [
        "segment=/run/a",
        "segment=\"/run/a,b\",mac=02:00:00:00:00:01,id=net7,mtu=9000,num_queues=4,\
         queue_size=512,socket=\"/tmp/a,b\",tap=vm1,uplink_offload=off,trunk=on,sandbox=log,\
         pci_segment=1,pci_device_id=9",
        "segment=/run/a,max_peers=9,max_link_memory=65536,max_user_share=50",
        "segment=/run/a,bw_size=1000,bw_refill_time=100",
        "segment=/run/a,bw_size=[0,9],bw_one_time_burst=[0,5],bw_refill_time=10,\
         ops_size=[1,2],ops_refill_time=[10,20]",
        "segment=/run/a,allow_mac=00:00:5e:00:01:*",
        "segment=/run/a,no_dhcp_server=on,ip=10.0.0.7",
        "segment=/run/a,ip=[10.0.0.0/8,fd00::7],allow_mac=00:00:5e:00:01:*",
        "segment=/run/a,allow_mac=[00:00:5e:00:01:*,02:00:00:00:00:07]",
    ] {
        let device = InterVm::parse(text).unwrap();
        assert_eq!(device.to_string(), text);
    }
    let relative = InterVm::parse("segment=./web,socket=s").unwrap();
    let absolute = relative.with_absolute_paths().unwrap();
    assert!(absolute.segment.is_absolute() && absolute.socket.unwrap().is_absolute());
}

#[test]
fn uplink_is_a_name_or_descriptors() {
    let device = |text: &str| InterVm::parse(&format!("segment=web,{text}")).unwrap();
    assert_eq!(device("tap=vm1").tap.as_deref(), Some("vm1"));
    assert_eq!(device("fd=7").fds, [7]);
    assert_eq!(device("fd=[7, 4],num_queues=4").fds, [7, 4]);
}

#[test]
fn segment_is_a_name_or_a_path() {
    let segment = |text: &str| InterVm::parse(text).unwrap().segment;
    let here = std::env::current_dir().unwrap();
    assert_eq!(segment("segment=web"), Path::new("/run/virtio-inter/web"));
    assert_eq!(segment("segment=./web"), here.join("web"));
}

#[test]
fn sizes_take_suffixes() {
    let device = InterVm::parse("segment=web,mtu=9K,queue_size=1K").unwrap();
    assert_eq!((device.mtu, device.queue_size), (Some(9216), Some(1024)));
}

#[test]
fn syntax_names_all_keys() {
    let syntax = syntax();
    assert!(
        syntax.starts_with("Inter-VM network parameters \"segment=<name_or_directory>,mac="),
        "{syntax}"
    );
    assert!(syntax.ends_with(",pci_device_id=<pci_slot>\""), "{syntax}");
}

#[test]
fn inter_vm_errors_name_the_mistake() {
    for (text, error) in [
        (
            "segmen=web",
            "Error parsing --inter-vm: Unknown option: segmen; did you mean segment?",
        ),
        (
            "mac=02:00:00:00:00:01",
            "Error parsing --inter-vm: segment missing",
        ),
        ("", "Error parsing --inter-vm: segment missing"),
        (
            "segment=",
            "Error parsing --inter-vm: segment= has no value",
        ),
        (
            "segment=\"web",
            "Error parsing --inter-vm: Invalid syntax: segment=\"web",
        ),
        (
            "segment=web,mtu=x",
            "Error parsing --inter-vm: Unable to convert x for mtu",
        ),
        (
            "segment=web,mac=02:00",
            "Error parsing --inter-vm: Invalid value: mac=02:00: MAC address \"02:00\" is \
             not six pairs of hexadecimal digits separated by colons",
        ),
        (
            "segment=web,id=__a",
            "Error parsing --inter-vm: Identifier __a is not valid",
        ),
    ] {
        assert_eq!(fails(text), error);
    }
    for (text, part) in [
        ("segment=web,mac=ff:ff:ff:ff:ff:ff", "multicast"),
        ("segment=web,id=a/b", "contains '/'"),
        ("segment=web,num_queues=3", "even number from 2 to 128"),
        ("segment=web,num_queues=0", "even number from 2 to 128"),
        ("segment=web,num_queues=130", "even number from 2 to 128"),
        ("segment=web,queue_size=100", "power of two"),
        ("segment=web,queue_size=1", "not from 2 to 32768"),
        (
            "segment=web,queue_size=64K",
            "queue_size=64K is not from 2 to 32768",
        ),
        ("segment=web,mtu=576", "mtu=576 is not from 1280 to 65535"),
        ("segment=web,mtu=1M", "mtu=1M is not from 1280 to 65535"),
        ("segment=web,mac=", "mac= has no value"),
        (
            "segment=web,socket=@vm1",
            "@vm1 looks like an abstract socket",
        ),
        ("segment=web,socket=\"\"", "the socket path is empty"),
        ("segment=..", "neither a name"),
    ] {
        assert!(fails(text).contains(part), "{}", fails(text));
    }
    for (text, part) in [
        ("fd=2", "Unable to convert 2 for fd"),
        ("fd=[3,x]", "Unable to convert [3,x] for fd"),
        ("fd=[3,3],num_queues=4", "fd=[3,3] lists 3 twice"),
        ("fd=[3,4]", "2 descriptor(s) for 1 pair(s)"),
        ("fd=3,tap=vm1", "two ways to give one uplink"),
        ("uplink_offload=off", "needs an uplink"),
        ("tap=vm1,uplink_offload=no", "uplink_offload"),
        (
            "allow_mac=02:00",
            "allow_mac=02:00: \"02:00\" is neither a MAC address nor",
        ),
        (
            "allow_mac=[02:00:00:00:00:01,02:00:00:00:00:01]",
            "is listed twice",
        ),
        ("allow_mac=33:33:00:*", "multicast"),
        (
            "sandbox=none",
            "sandbox=none is not one of off, log, on, strict",
        ),
        ("max_peers=0", "max_peers=0 is not from 1 to 65535"),
        ("max_link_memory=1K", "max_link_memory=1K is not from 65536"),
        (
            "max_user_share=101",
            "max_user_share=101 is not from 1 to 100",
        ),
        (
            "ip=10.0.0",
            "ip=10.0.0: \"10.0.0\" is neither an IP address",
        ),
        ("no_dhcp_server=x", "Unable to convert x for no_dhcp_server"),
        (
            "bw_size=1000",
            "bw_size= and bw_refill_time= belong together",
        ),
        (
            "ops_one_time_burst=5",
            "ops_size= and ops_refill_time= belong",
        ),
        (
            "bw_size=1,bw_refill_time=5",
            "bw_refill_time=5 is not in 10..=3600000 ms",
        ),
        (
            "ops_size=100G,ops_refill_time=1000",
            "ops_size=107374182400 in 1000 ms is more than 64G a second",
        ),
        ("bw_size=[1,2,3]", "Unable to convert [1,2,3] for bw_size"),
        ("bw_size=[1]", "Unable to convert [1] for bw_size"),
        (
            "mac=02:00:00:00:00:01,allow_mac=02:00:00:00:00:01",
            "which is mac= already",
        ),
    ] {
        let text = format!("segment=web,{text}");
        assert!(fails(&text).contains(part), "{}", fails(&text));
    }
    let long = format!("segment=web,socket=/{}", "x".repeat(107));
    assert!(fails(&long).contains("108 bytes"), "{}", fails(&long));
}

#[test]
fn ids_are_given_and_unique() {
    let ids = |texts: &[&str]| -> Result<Vec<String>, InterVmError> {
        let devices = parse_all(texts.iter().copied())?;
        Ok(devices.iter().map(|(id, _)| id.to_string()).collect())
    };
    assert_eq!(
        ids(&["segment=a", "segment=a,id=inter-vm0", "segment=b"]).unwrap(),
        ["inter-vm1", "inter-vm0", "inter-vm2"]
    );
    let error = ids(&["segment=a,id=x", "segment=b,id=x"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Error parsing --inter-vm: Identifier x is not unique"
    );
}
