"""Which kernels a package has: those of its model in the plugin form, and the tactics among which TensorRT chooses.

A package may come from anyone: only files that agree with its manifest are read, and what its models say of an operator
is held against the operator's configuration and tables before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxopt.deploy.aot_model import AOT_MODEL, AotModel, check_aot
from onnxopt.deploy.engine_operators import EngineOperator, Tactic
from onnxopt.deploy.manifest import checked_file
from onnxopt.deploy.operators_file import OPERATORS_FILE, read_operators
from onnxopt.deploy.packaged_kernels import packaged_architecture, packaged_kernel
from onnxopt.deploy.plugin_module import kernel_name
from onnxopt.errors import InputError, OnnxOptError
from onnxopt.kernels.compilation import CompiledKernel
from onnxopt.kernels.cubin import CubinError
from onnxopt.kernels.operator_source import operator_source
from onnxopt.kernels.report import ReportError
from onnxopt.kernels.source import KernelSource, others_of, with_others
from onnxopt.lower.algorithm_nodes import PluginAlgorithm, plugin_algorithms
from onnxopt.lower.plugin_blocks import PluginBlock, plugin_blocks
from onnxopt.lower.plugin_convolutions import plugin_convolutions
from onnxopt.lower.plugin_nodes import PluginNode, plugin_sites
from onnxopt.lower.rewrite import is_plugin_node
from onnxopt.model.read import read_model
from onnxopt.package import PLUGIN
from onnxopt.validate import PlanError, validate_attention_launch, validate_conv_launch
from onnxopt.verification.same_code import same_code
from onnxopt.written import check_algorithm_launch, check_block_launch

Nodes = tuple[PluginNode, ...]
_OPTIMIZE = "optimize the original model again"


@dataclass(frozen=True, eq=False)
class Program:
    """A kernel of a package: the name of its files, what it is written from, and the sites that use it.

    ``node`` is one that calls it, with the kernel's own tables. Of a tactic there are its number and the shared memory
    with which an engine launches it. ``alike`` names tactics whose code is this one but for unused parameters.
    """

    name: str
    node: PluginNode
    sites: tuple[str, ...]
    source: KernelSource
    architecture: str
    tactic: int | None = None
    shared_bytes: int | None = None
    alike: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Site:
    """The operators that one site became, and how to prove that their tables address only what exists."""

    site: str
    nodes: Nodes
    prove: Callable[[Nodes], None]


def package_programs(package: Path, listed: Collection[str]) -> tuple[Program, ...]:
    """The kernels of a package that have to be run, each operator's own and behind it its tactics.

    ``listed`` are the files of the manifest. Without the model for TensorRT there are no tactics. Raises InputError
    where files are not those of the manifest, or models, operators, tables and kernels do not belong together.
    """
    model = read_model(checked_file(package, PLUGIN))
    sites = _sites(package, model)
    own: dict[str, Program] = {}
    for site in sites:
        with _refusing(package / PLUGIN, site.site):
            for node in site.nodes:
                # What tables are held against must be a configuration first.
                operator_source(node.configuration, node.resident)
            site.prove(site.nodes)
        for node in site.nodes:
            known = own.get(node.operator)
            own[node.operator] = _with_site(known, site.site) if known else _own(package, listed, node, site.site)
    if AOT_MODEL not in listed and OPERATORS_FILE not in listed:
        return tuple(own.values())
    tactics = _tactics(package, listed, model, sites)
    found: list[Program] = []
    for operator, program in own.items():
        alike = [t for t in tactics.get(operator, ()) if t.tactic == 0 and _is_alike(package, program, t)]
        found.append(replace(program, alike=tuple(tactic.name for tactic in alike)))
        found += [tactic for tactic in tactics.get(operator, ()) if tactic not in alike]
    return tuple(found)


def compiled_program(package: Path, program: Program) -> CompiledKernel:
    """A kernel as the package has it.

    Raises InputError where a file is not what the manifest says; CubinError or ReportError where its machine code, its
    PTX and its launch are not of one kernel.
    """
    compiled = packaged_kernel(package, program.name, program.source, program.architecture)
    taken = compiled.report.dynamic_shared
    if program.shared_bytes not in (None, taken):
        raise ReportError(
            f"{OPERATORS_FILE} launches it with {program.shared_bytes:,} bytes of shared memory; its PTX takes "
            f"{taken:,}"
        )
    return compiled


def _sites(package: Path, model: ModelProto) -> list[_Site]:
    """The sites of the model in the plugin form, those of a kind together."""
    try:
        attention, convolutions = plugin_sites(model), plugin_convolutions(model)
        blocks, algorithms = plugin_blocks(model), plugin_algorithms(model)
    except InputError as error:
        raise InputError(f"{package / PLUGIN}: {error}") from None
    found = [_Site(s.site, _present(s.attention, s.merge), _prove_attention) for s in attention]
    found += [_Site(s.site, _present(s.convolution, s.sum), _prove_convolution) for s in convolutions]
    found += [_Site(s.site, (s.block,), partial(_prove_block, s.site)) for s in blocks]
    found += [_Site(s.site, s.steps, partial(_prove_steps, s)) for s in algorithms]
    return found


def _present(first: PluginNode, second: PluginNode | None) -> Nodes:
    return (first,) if second is None else (first, second)


def _prove_attention(nodes: Nodes) -> None:
    first, *second = nodes
    validate_attention_launch(first.kernel, first.tables, (second[0].kernel, second[0].tables) if second else None)


def _prove_convolution(nodes: Nodes) -> None:
    first, *second = nodes
    validate_conv_launch(first.kernel, first.tables, (second[0].kernel, second[0].tables) if second else None)


def _prove_block(site: str, nodes: Nodes) -> None:
    check_block_launch(PluginBlock(site, nodes[0]))


def _prove_steps(algorithm: PluginAlgorithm, nodes: Nodes) -> None:
    check_algorithm_launch(replace(algorithm, steps=nodes))


def _own(package: Path, listed: Collection[str], node: PluginNode, site: str) -> Program:
    architecture = packaged_architecture(package, listed, node.operator)
    source = operator_source(node.configuration, node.resident)
    return Program(node.operator, node, (site,), source, architecture)


def _with_site(program: Program, site: str) -> Program:
    return replace(program, sites=(*program.sites, site))


def _tactics(
    package: Path, listed: Collection[str], plugin: ModelProto, sites: Sequence[_Site]
) -> dict[str, list[Program]]:
    """The tactics of operators that have several, by the name of the operator of ``plugin`` that they belong to."""
    described = read_operators(checked_file(package, OPERATORS_FILE))
    model = read_model(checked_file(package, AOT_MODEL))
    with _refusing(package / AOT_MODEL):
        check_aot(AotModel(model, described.operators), plugin)
    operators = {operator.name: operator for operator in described.operators}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    places = {node.outputs[0]: (site, n) for site in sites for n, node in enumerate(site.nodes)}
    found: dict[str, dict[str, Program]] = {}
    for called in filter(is_plugin_node, model.graph.node):
        operator, (site, place) = operators[called.op_type], places[called.output[0]]
        if len(operator.tactics) == 1:
            continue
        own = found.setdefault(site.nodes[place].operator, {})
        for number, tactic in enumerate(operator.tactics):
            name = kernel_name(operator, number)
            if name in own:
                own[name] = _with_site(own[name], site.site)
                continue
            node = _tactic_node(site.nodes[place], called, operator, tactic, constants)
            with _refusing(package / AOT_MODEL, f"{site.site}, tactic {number}"):
                site.prove((*site.nodes[:place], node, *site.nodes[place + 1 :]))
                source = _among_others(operator, tactic)
            own[name] = Program(
                name,
                node,
                (site.site,),
                source,
                _same_architecture(package, listed, name, described.architecture),
                number,
                tactic.shared_bytes,
            )
    return {operator: list(programs.values()) for operator, programs in found.items()}


def _tactic_node(
    node: PluginNode, called: NodeProto, operator: EngineOperator, tactic: Tactic, constants: Mapping[str, TensorProto]
) -> PluginNode:
    """What a node of the plugin form is by a tactic, with the tables that the model for TensorRT has for it."""
    first = len(operator.operands) + tactic.first_table
    names = called.input[first : first + tactic.tables]
    tables = {
        port.name: numpy_helper.to_array(constants[name])
        for port, name in zip(operator.tables[tactic.first_table :], names, strict=False)
    }
    return replace(
        node,
        operator=operator.name,
        configuration=tactic.configuration,
        tables=tables,
        resident=tactic.resident,
    )


def _among_others(operator: EngineOperator, tactic: Tactic) -> KernelSource:
    after = len(operator.tables) - tactic.first_table - tactic.tables
    return with_others(operator_source(tactic.configuration, tactic.resident), tactic.first_table, after)


def _same_architecture(package: Path, listed: Collection[str], name: str, wanted: str) -> str:
    found = packaged_architecture(package, listed, name)
    if found != wanted:
        raise InputError(f"{package}: {OPERATORS_FILE} is for {wanted}, its kernel {name} for {found}; {_OPTIMIZE}")
    return found


def _is_alike(package: Path, own: Program, tactic: Program) -> bool:
    """Whether a tactic's code is that of the operator's own kernel, which is called without tables of others."""
    try:
        alone, among = compiled_program(package, own), compiled_program(package, tactic)
    except InputError:
        raise
    except (OnnxOptError, CubinError):
        # What is wrong with either is found when it is run.
        return False
    inputs = len(tactic.node.operands), len(tactic.node.tables)
    return same_code(alone.ptx, among.ptx, tactic.source.entry, inputs, others_of(tactic.source))


@contextmanager
def _refusing(file: Path, site: str = "") -> Iterator[None]:
    """Name what a refusal is about."""
    try:
        yield
    except (InputError, PlanError) as error:
        raise InputError(f"{file}: {f'{site}: ' if site else ''}{error}; {_OPTIMIZE}") from None
