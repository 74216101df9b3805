"""What each width costs on the device: tables of measured kernels, prediction, feasibility, closure."""

from edgeprune.latency.build import Maker as Maker
from edgeprune.latency.build import maker as maker
from edgeprune.latency.closure import Closure as Closure
from edgeprune.latency.closure import close as close
from edgeprune.latency.feasibility import Feasibility as Feasibility
from edgeprune.latency.feasibility import feasibility as feasibility
from edgeprune.latency.predict import Predictor as Predictor
from edgeprune.latency.profiling import Profile as Profile
from edgeprune.latency.profiling import profile as profile
from edgeprune.latency.profiling import quick as quick
from edgeprune.latency.sample import extend as extend
from edgeprune.latency.table import Table as Table
from edgeprune.latency.timing import Effort as Effort
from edgeprune.latency.variants import Variant as Variant
from edgeprune.latency.variants import options as options
