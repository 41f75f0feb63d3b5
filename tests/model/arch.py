"""The tables of docs/arch-items.md as the model takes them: what an architecture's own operations do to a page.

The document is the contract (a test holds it against the code's tables); nothing here knows the code.
"""
import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENT = os.path.join(HERE, "..", "..", "docs", "arch-items.md")
# What the tables have to say whatever else changes: operation -> the law's states of a VM in which it is legal, from the
# architectures' documents (a realm's initial RIPAS and its first data are measured, and end with its activation, ...).
VM_RULES = {
    "cca.rtt_init_ripas": "transient", "cca.data_create": "transient", "cca.populate": "transient",
    "snp.launch_update": "transient", "tdx.mem.page.add": "transient", "cca.rtt_set_ripas_ram": "secure",
    "cca.rtt_set_ripas_empty": "secure", "cca.rtt_set_ripas_ram_cd": "secure", "cca.rtt_set_ripas_empty_cd": "secure",
    "tdx.mem.page.aug": "secure", "snp.pvalidate": "secure", "snp.pvalidate_rescind": "secure",
}
LAW_STATES = {"normal": "normal", "secure, resident": "in", "secure, out": "out", "shared": "shared"}


class Op:
    """One row: next state by state (None: refused), and in which of the VM's states it is legal (None: in all)."""

    def __init__(self, name, framed, cells, vm):
        self.name, self.framed, self.next, self.vm = name, framed, cells, vm


class VmState:
    """A state of the VM itself: its name, the law's, and where init_done leads (None: an error)."""

    def __init__(self, name, law, done):
        self.name, self.law, self.done = name, law, done


class Law:
    """States (name, the law's state) and operations of one architecture."""

    def __init__(self, name):
        self.name, self.states, self.rest, self.ops = name, [], {}, {}
        self.vm_states, self.vm_ops = [], {}

    def column(self, head):
        """The page state that a column or a cell names; ambiguous names carry the law's state in brackets."""
        return self.named(head, self.states, LAW_STATES)

    def vm_state(self, head):
        """The same of a VM's own states."""
        return self.named(head, [(s.name, s.law) for s in self.vm_states], {"transient": "transient", "secure": "secure"})

    def named(self, head, states, words):
        found = [i for i, (name, law) in enumerate(states)
                 if head == name or any(head == f"{name} ({word})" for word, s in words.items() if s == law)]
        if len(found) != 1:
            raise ValueError(f"{DOCUMENT}: {self.name}: {head!r} names {len(found)} states")
        return found[0]

    def find(self, op, framed):
        return self.ops.get((op, framed))

    def take(self, heads, cells):
        """One row of any of the tables."""
        at = dict(zip(heads, cells))
        if heads[:2] == ["state", "in the law"]:
            self.states.append((at["state"], LAW_STATES[at["in the law"]]))
            if at["at rest"] == "yes":
                self.rest[LAW_STATES[at["in the law"]]] = len(self.states) - 1
        elif heads[0] == "state of the VM":
            self.vm_states.append(VmState(at["state of the VM"], at["in the law"], at["init_done leads to"]))
        elif heads[0] == "step":
            steps = self.vm_ops.setdefault(at["step"].strip("`"), [None] * len(self.vm_states))
            steps[self.vm_state(at["from"])] = self.vm_state(at["to"])
        elif "while the VM is" in at:
            words = at["while the VM is"]
            legal = None if words == "any" else {self.vm_state(word.strip()) for word in words.split(", ")}
            self.ops[at["operation"].strip("`"), at["frames"] == "yes"].vm = legal
        elif heads[:2] == ["operation", "frames"]:
            self.take_operation(at)

    def take_operation(self, at):
        name, framed, row = at.pop("operation").strip("`"), at.pop("frames") == "yes", []
        at.pop("rule")
        for head, cell in at.items():
            here = self.column(head)
            row.append((here, None if cell == "-" else here if cell == "stays" else self.column(cell)))
        self.ops[name, framed] = Op(name, framed, [to for _, to in sorted(row, key=lambda r: r[0])], None)

    def finish(self):
        """Names of the VM's states that were read as they came; and the rules that no edit of the document undoes."""
        for state in self.vm_states:
            state.done = None if state.done == "-" else self.vm_state(state.done)
        for (name, _), op in self.ops.items():
            legal = {self.vm_states[s].law for s in op.vm} if op.vm is not None else {"transient", "secure"}
            if name in VM_RULES and legal != {VM_RULES[name]}:
                raise ValueError(f"{DOCUMENT}: {name} is legal while the VM is {legal}, not {VM_RULES[name]} alone")
        if self.name == "pkvm" and {self.vm_states[s].name for s in self.find("pkvm.host_reclaim_page", False).vm} != {"DYING"}:
            raise ValueError(f"{DOCUMENT}: pkvm.host_reclaim_page is for a dying VM")
        if self.name == "cca" and {self.vm_states[s].name for s in self.find("cca.rtt_init_ripas", False).vm} != {"NEW"}:
            raise ValueError(f"{DOCUMENT}: cca.rtt_init_ripas is for a NEW realm")


def rows(lines):
    for line in lines:
        if line.startswith("|") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def read_laws(path=DOCUMENT):
    """{arch: Law} of all architectures in the document."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    laws = {}
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        named = re.match(r".*\(`(\w+)`\)", part)
        if not named:
            continue
        law, heads = laws.setdefault(named.group(1), Law(named.group(1))), None
        for cells in rows(part.splitlines()):
            if cells[0] in ("state", "operation", "state of the VM", "step"):
                heads = cells
            elif heads:
                law.take(heads, cells)
        law.finish()
    return laws
