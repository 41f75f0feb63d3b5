#!/usr/bin/env python3
"""Changes every cell of every lifecycle and architecture table, one at a time, and counts which changes tests notice.

Nothing is rebuilt: a mutant is a copy of a test program in which one field of one cell holds another valid value. Where
tables lie, what their fields are and which values are valid is read from the object files' debug information and the
programs' symbols. A mutant is caught when a program fails or hangs: first `pagewarden replay` of the architecture's
traces, then its unit tests; those that compare a table with its printed copy in docs/ do not count.

What no program could notice is in tests/mutants.equivalent, one line each:
    TABLE[ROW][COLUMN].FIELD [when A=B [and C!=D]]: reason
with `*` for anything; A to D are fields of the same struct or of a lone struct in the same file, `row`, `new` (what is
written), `index` (the last one), numbers, or names of values.
Exit status: 0, or 1 if a mutant survived that is not listed there. Run it from the root of the tree.
"""
import argparse
import collections
import fnmatch
import glob
import itertools
import multiprocessing
import operator
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SOURCES = ("engine/lifecycle.c", "engine/arch/*_tables.c", "engine/arch/*_checks.c", "engine/arch/snp_swap.c",
           "engine/arch/*_law.c")
NOT_COPIES = "*/!(*documented*)"  # tests whose names say that they compare tables with documents
TIMEOUT_S = 60

Field = collections.namedtuple("Field", "path offset size values struct")  # values: {number: name}, {} of integers
Table = collections.namedtuple("Table", "name symbol source subject cells rows")  # cells: [(label, [Field])]
Mutant = collections.namedtuple("Mutant", "table label field old new")


# Layout, from debug information

def entries_of(path):
    """{offset: {tag, attributes, children}} of an object file."""
    text = subprocess.run(["readelf", "-W", "--debug-dump=info", path], capture_output=True, text=True, check=True).stdout
    entries, open_ones = {}, []
    for line in text.splitlines():
        if match := re.match(r" *<(\w+)><(\w+)>: Abbrev Number: \d+ \((\w+)\)", line):
            depth, entry = int(match[1], 16), {"tag": match[3][7:], "children": [], "depth": int(match[1], 16)}
            del open_ones[depth:]
            if open_ones:
                open_ones[-1]["children"].append(entry)
            open_ones.append(entry)
            entries[int(match[2], 16)] = entry
        elif (match := re.match(r" +<\w+> +DW_AT_(\w+) *: (.*)", line)) and open_ones:
            open_ones[-1][match[1]] = re.sub(r"^\(\w+\) ", "", match[2].split("): ")[-1].strip())
    return entries


def number(text):
    return int(text.split("\t")[0].split()[0], 0)


def named_dimensions(source, name, entries):
    """For each dimension of a table: the names of its indices, where it is declared with an enum's count."""
    with open(source, encoding="utf-8") as f:
        match = re.search(rf"\b{name}((?:\[\w*\])+) =", f.read())
    names = []
    for dimension in re.findall(r"\[(\w*)\]", match[1]) if match else []:
        enum = next((e for e in entries.values() if e["tag"] == "enumeration_type"
                     and any(c["name"] == dimension for c in e["children"])), None)
        names.append({number(c["const_value"]): c["name"] for c in enum["children"]} if enum else {})
    return names


class Layout:
    """The fields of one object file's tables."""

    def __init__(self, source, build):
        self.entries = entries_of(os.path.join(build, source[:-2] + ".o"))
        self.source = source
        self.stem = os.path.basename(source)[:-2]
        arch = self.stem.split("_")[0]
        self.subject = self.stem if self.stem in ("lifecycle", f"{arch}_law") else arch

    def at(self, reference):
        return self.entries[int(re.search(r"<0x(\w+)>", reference)[1], 16)]

    def inner(self, entry):
        while entry["tag"] in ("typedef", "const_type", "volatile_type"):
            entry = self.at(entry["type"])
        return entry

    def size(self, entry):
        entry = self.inner(entry)
        if entry["tag"] == "array_type":
            count = 1
            for c in entry["children"]:
                count *= number(c.get("upper_bound", "-1")) + 1
            return count * self.size(self.at(entry["type"]))
        return number(entry["byte_size"])

    def values(self, entry):
        if entry["tag"] == "enumeration_type":
            return {number(c["const_value"]): c["name"] for c in entry["children"]}
        return {0: "false", 1: "true"} if entry.get("name") in ("_Bool", "bool") else {}

    def fields(self, entry, path, offset, struct):
        """Enums, numbers and booleans under an entry. `struct` is where the closest struct begins, and its size."""
        entry = self.inner(entry)
        if entry["tag"] in ("enumeration_type", "base_type"):
            if entry.get("name") != "char":
                yield Field(path, offset, number(entry["byte_size"]), self.values(entry), struct)
        elif entry["tag"] == "array_type":
            for label, at, element in self.elements(entry, []):
                yield from self.fields(element, path + label, offset + at, struct)
        elif entry["tag"] == "structure_type":
            struct = (offset, number(entry["byte_size"]), self.inner(self.at(entry["children"][0]["type"]))["tag"])
            for c in entry["children"]:
                where = offset + number(c["data_member_location"])
                yield from self.fields(self.at(c["type"]), f"{path}.{c['name']}", where, struct)

    def elements(self, array, names):
        """(label, offset, type) of each."""
        element = self.at(array["type"])
        counts = [number(c.get("upper_bound", "-1")) + 1 for c in array["children"] if c["tag"] == "subrange_type"]
        names = names + [{}] * (len(counts) - len(names))
        for i, index in enumerate(itertools.product(*map(range, counts))):
            label = "".join(f"[{name.get(n, n)}]" for n, name in zip(index, names))
            yield label, i * self.size(element), element

    def tables(self):
        for variable in list(self.entries.values()):
            if variable["tag"] != "variable" or variable["depth"] != 1 or "location" not in variable:
                continue
            if "specification" in variable:
                variable = {**self.at(variable["specification"]), **variable}  # whose own type has the bounds
            entry = self.inner(self.at(variable["type"]))
            if entry["tag"] not in ("array_type", "structure_type"):
                continue
            name = variable["name"]
            names = named_dimensions(self.source, name, self.entries)
            elements = self.elements(entry, names) if entry["tag"] == "array_type" else [("", 0, entry)]
            cells = [(label, list(self.fields(kind, "", offset, None))) for label, offset, kind in elements]
            if not cells:
                sys.exit(f"{self.source}: {name}: an array without bounds")
            if any(fields for _, fields in cells):
                rows = {row: n for n, row in names[0].items()} if names else {}
                yield Table(f"{self.stem}.{name}", name, self.stem + ".c", self.subject, cells, rows)


# Programs

class Program:
    """A test program: how to run it, and where in its file the tables are."""

    def __init__(self, path, arguments, wanted):
        self.path, self.arguments, self.wanted = path, arguments, wanted
        self.places = None

    def place(self, table):
        """Where the table begins in the file, or None."""
        if self.places is None:
            self.places = dict(self.read_places())
        return self.places.get((table.source, table.symbol)) or self.places.get((None, table.symbol))

    def read_places(self):
        text = subprocess.run(["readelf", "-SsW", self.path], capture_output=True, text=True, check=True).stdout
        sections, source = {}, None
        for line in text.splitlines():
            if match := re.match(r" *\[ *(\d+)\] \S+ +\w+ +(\w+) (\w+) ", line):
                sections[int(match[1])] = int(match[3], 16) - int(match[2], 16)
            elif match := re.match(r" *\d+: (\w+) +\w+ (\w+) +(\w+) +\w+ +(\w+) (\S+)", line):
                address, kind, binding, section, name = match.groups()
                if kind == "FILE":
                    source = name
                elif kind == "OBJECT" and section.isdigit() and name in self.wanted:
                    yield (source if binding == "LOCAL" else None, name), int(address, 16) + sections[int(section)]


def programs_of(build, tables):
    """{subject: the programs that may notice a change of its tables, cheapest and likeliest first}."""
    wanted = {t.symbol for t in tables}
    units = [p for d in ("engine", "api", "agents") for p in sorted(glob.glob(f"{build}/tests/{d}/test_*"))
             if os.access(p, os.X_OK) and not re.search(r"\.[od]$|_docs$|_oom$", p)]
    options = ["--jobs", "1", "--fail-fast", "--color=never", "--ignore-warnings", "--filter", NOT_COPIES]
    unit = {p: Program(p, options, wanted) for p in units}
    replay = f"{build}/pagewarden"
    found = {}
    for subject in sorted({t.subject for t in tables}):
        arch = subject.split("_")[0]
        traces = sorted(glob.glob(f"tests/traces/{arch}/*.jsonl") + glob.glob(f"tests/traces/{arch}-*/*.jsonl"))
        names = rf"_{arch}(_|$)" if subject == arch else rf"_({arch}|lifecycle|arch|laws?|ledger)(_|$)"
        found[subject] = [Program(replay, ["replay", *traces], wanted)] * bool(traces)
        found[subject] += [unit[p] for p in sorted(units, key=os.path.getsize) if re.search(names, p)]
    return found


# Mutants

def read(data, place, field):
    return int.from_bytes(data[place + field.offset:place + field.offset + field.size], "little")


class Equivalents:
    """The lines of tests/mutants.equivalent."""

    COMPARE = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

    def __init__(self, path):
        self.lines = []
        with open(path, encoding="utf-8") as f:
            for line in f:
                if line.strip() and not line.startswith("#"):
                    match = re.fullmatch(r"(\S+?)(?: when ([^:]+))?: .+\n?", line)
                    terms = [re.fullmatch(r"(\w+)(=|!=|<=?|>=?)(\w+)", t) for t in (match[2] or "").split(" and ") if t] \
                        if match else [None]
                    if None in terms:
                        sys.exit(f"{path}: not understood: {line.strip()}")
                    self.lines.append((match[1].replace("[", "[[]"), [t.groups() for t in terms]))

    def has(self, label, known):
        """known: names of the struct's fields and of values, and what they are."""
        def holds(left, compare, right):
            a, b = (int(n, 0) if n[0].isdigit() else known.get(n) for n in (left, right))
            return None not in (a, b) and self.COMPARE[compare](a, b)

        return any(fnmatch.fnmatchcase(label, pattern) and all(holds(*t) for t in terms) for pattern, terms in self.lines)


def is_filler(data, place, field):
    """All zero, and of a kind that no cell of zeros can be: padding or the end of a list."""
    if not field.struct or field.struct[2] not in ("enumeration_type", "pointer_type"):
        return False
    first, size, _ = field.struct
    return not any(data[place + first:place + first + size])


def others(field, now, seen):
    """Valid values of the field that it does not hold. Counts and UNDECIDED are none: totality tests see those alone."""
    if field.values:
        return sorted(v for v, name in field.values.items()
                      if v != now and not name.endswith(("_COUNT", "UNDECIDED")) and v < 1 << 8 * field.size)
    return sorted(seen - {now}) or [now ^ 1]


def facts_of(table, data, place):
    """The numbers of a struct that is no array: what tables of the same file may depend on."""
    label, fields = table.cells[0]
    return {} if label else {f.path[1:]: read(data, place, f) for f in fields if not f.values}


def known_in(table, facts, label, fields, field, data, place):
    """What an equivalent's condition may name."""
    known = {name: value for f in fields for value, name in f.values.items()} | table.rows | facts
    known["row"] = table.rows.get(label[1:].split("]")[0])
    known.update((f.path.rsplit(".", 1)[-1], read(data, place, f)) for f in fields if f.struct == field.struct)
    if indices := re.findall(r"\[(\d+)\]", field.path):
        known["index"] = int(indices[-1])
    return known


def mutants_of(table, facts, data, place, equivalents, choice):
    """(mutants, how many cells, how many equivalents): one for each field of each cell."""
    seen = collections.defaultdict(set)
    general = lambda path: re.sub(r"\[\w+\]", "", path)
    for _, fields in table.cells:
        for f in fields:
            seen[general(f.path)].add(read(data, place, f))
    mutants, cells, equivalent = [], 0, 0
    for label, fields in table.cells:
        real = [f for f in fields if not is_filler(data, place, f)]
        cells += bool(real)
        for f in real:
            where, now = f"{table.name}{label}{f.path}", read(data, place, f)
            known = known_in(table, facts, label, fields, f, data, place)
            values = [v for v in others(f, now, seen[general(f.path)]) if not equivalents.has(where, {**known, "new": v})]
            if not values:
                equivalent += 1
                continue
            new = random.Random(f"{choice} {where}").choice(values)
            mutants.append(Mutant(table, where, f, now, new))
    return mutants, cells, equivalent


# Running. Each worker has copies of the programs, changed in place and restored.

class Worker:
    def __init__(self, folder, programs, build):
        self.folder, self.programs = tempfile.mkdtemp(dir=folder), programs
        self.env = dict(os.environ, LC_ALL="C.UTF-8", PAGEWARDEN_BUILD=os.path.abspath(build), PAGEWARDEN_URL="")
        self.passes = {}    # of programs that were run unchanged
        self.catches = {}   # by table: the program that caught the last one

    def copy(self, program):
        path = os.path.join(self.folder, os.path.basename(program.path))
        if not os.path.exists(path):
            shutil.copy(program.path, path)
        return path

    def fails(self, program):
        child = subprocess.Popen([self.copy(program), *program.arguments], stdin=subprocess.DEVNULL, env=self.env,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            return child.wait(TIMEOUT_S) != 0
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            os.unlink(self.copy(program))  # it may still be running somewhere: never write to it again
            return True

    def write(self, program, offset, size, value):
        if os.path.exists(path := self.copy(program)):
            with open(path, "r+b") as f:
                f.seek(offset)
                f.write(value.to_bytes(size, "little"))

    def catches_it(self, program, mutant):
        if program not in self.passes:
            self.passes[program] = not self.fails(program)
        if not self.passes[program]:
            raise RuntimeError(f"{program.path} fails without any change")
        offset = program.place(mutant.table) + mutant.field.offset
        self.write(program, offset, mutant.field.size, mutant.new)
        caught = self.fails(program)
        self.write(program, offset, mutant.field.size, mutant.old)
        return caught

    def run(self, mutant):
        """The name of the program that caught it, or None."""
        programs = [p for p in self.programs[mutant.table.subject] if p.place(mutant.table) is not None]
        programs.sort(key=lambda p: p.path != self.catches.get(mutant.table.name))
        for p in programs:
            if self.catches_it(p, mutant):
                self.catches[mutant.table.name] = p.path
                return os.path.basename(p.path)
        return None


def start_worker(*arguments):
    global worker  # one in each process of the pool
    worker = Worker(*arguments)


def run_mutant(mutant):
    return mutant, worker.run(mutant)


def run_all(mutants, programs, options):
    """{mutant: who caught it}, as they come."""
    began, caught = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="pagewarden-mutants-") as folder, \
            multiprocessing.Pool(options.jobs, start_worker, (folder, programs, options.build)) as pool:
        for mutant, by in pool.imap_unordered(run_mutant, mutants):
            caught[mutant.label] = by
            if options.verbose or not by:
                print(f"{by or 'survived'}: {shown(mutant)}", flush=True)
            if sys.stderr.isatty():
                print(f"\r{len(caught)} of {len(mutants)}, {time.monotonic() - began:.0f} s ", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return caught


def shown(mutant):
    name = lambda v: mutant.field.values.get(v, v)
    return f"{mutant.label} {name(mutant.old)} -> {name(mutant.new)}"


def report(counts, mutants, caught):
    """The table, by table."""
    row = "{:36} {:>6} {:>8} {:>7} {:>9} {:>11}"
    print(row.format("table", "cells", "mutants", "caught", "survived", "equivalent"))
    total = [0] * 5
    for table, cells, equivalent in counts:
        own = [m for m in mutants if m.table is table]
        good = sum(caught[m.label] is not None for m in own)
        figures = [cells, len(own), good, len(own) - good, equivalent]
        total = [a + b for a, b in zip(total, figures)]
        print(row.format(table.name, *figures))
    print(row.format("all", *total))
    by = collections.Counter("replay" if w == "pagewarden" else w for w in caught.values() if w)
    print("caught by " + ", ".join(f"{who} {n}" for who, n in by.most_common()))


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--build", default=os.environ.get("PAGEWARDEN_BUILD", "build"), help="folder of the programs")
    ap.add_argument("--sample", type=int, metavar="N", help="so many of the mutants, at random; not all")
    ap.add_argument("--seed", type=int, default=1, help="of the sample")
    ap.add_argument("--values", type=int, default=1, help="another number: other values are written")
    ap.add_argument("--only", action="append", metavar="PATTERN",
                    help="labels, as in 'pef*' or '*.gfn_cells*'; may be repeated")
    ap.add_argument("--jobs", type=int, default=os.cpu_count())
    ap.add_argument("--equivalent", default="tests/mutants.equivalent", metavar="FILE")
    ap.add_argument("--verbose", action="store_true", help="show the caught ones as well")
    ap.add_argument("--list", action="store_true", help="show the mutants, run none")
    return ap.parse_args()


def all_mutants(tables, programs, equivalents, options):
    """(mutants, [(table, its cells, its equivalents)], names of tables that no program has)."""
    patterns = [p.replace("[", "[[]") for p in options.only or ["*"]]
    mutants, counts, untested, images, facts = [], [], [], {}, collections.defaultdict(dict)

    def wanted(label):
        return any(fnmatch.fnmatchcase(label, p) for p in patterns)

    for t in tables:
        program = next((p for p in programs[t.subject] if p.place(t) is not None), None)
        if program is None:
            untested += [t.name] * wanted(t.name)
            continue
        with open(program.path, "rb") as f:
            images[t.name] = f.read(), program.place(t)
        facts[t.source].update(facts_of(t, *images[t.name]))
    for t in (t for t in tables if t.name in images):
        found, cells, equivalent = mutants_of(t, facts[t.source], *images[t.name], equivalents, options.values)
        found = [m for m in found if wanted(m.label)]
        if found:
            counts.append((t, cells, equivalent))
            mutants += found
    return mutants, counts, untested


def main():
    options = arguments()
    equivalents = Equivalents(options.equivalent)
    sources = sorted(s for pattern in SOURCES for s in glob.glob(pattern))
    tables = [t for s in sources for t in Layout(s, options.build).tables()]
    programs = programs_of(options.build, tables)
    mutants, counts, untested = all_mutants(tables, programs, equivalents, options)
    if options.sample:
        print(f"seed {options.seed}", flush=True)
        mutants = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    if options.list:
        print("\n".join(shown(m) for m in mutants))
        return 0
    try:
        caught = run_all(mutants, programs, options)
    except RuntimeError as e:
        sys.exit(str(e))
    report(counts, mutants, caught)
    for name in untested:
        print(f"{name}: no test program has it")
    return 1 if untested or None in caught.values() else 0


if __name__ == "__main__":
    sys.exit(main())
