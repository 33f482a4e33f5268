"""What a site says of its network, as environment variables of NCCL, gloo and torch. Pure."""

from __future__ import annotations

from launch.clusters.site import Site


def network_environment(site: Site) -> dict[str, str]:
    """Of every process of a stage; what the site leaves open is not set."""
    network = site.network
    found: dict[str, str] = {}
    if network.interface:
        found |= {"NCCL_SOCKET_IFNAME": network.interface, "GLOO_SOCKET_IFNAME": network.interface}
    if network.infiniband == "off":
        found["NCCL_IB_DISABLE"] = "1"
    elif network.infiniband:
        found["NCCL_IB_HCA"] = network.infiniband
    if network.timeout_minutes:
        found["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] = f"{round(network.timeout_minutes * 60)}"
    if network.flight_recorder:
        found |= {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    else:
        found["TORCH_FR_BUFFER_SIZE"] = "0"
    # A store that agents share with their workers outlives neither of them: who comes back finds it gone.
    return found | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
