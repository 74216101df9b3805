"""What each width costs on the device: tables of measured kernels, prediction, feasibility, closure."""

from edgeprune.latency.build import ArtifactBuilder as ArtifactBuilder
from edgeprune.latency.build import maker as maker
from edgeprune.latency.closure import Closure as Closure
from edgeprune.latency.closure import refine as refine
from edgeprune.latency.feasibility import Feasibility as Feasibility
from edgeprune.latency.feasibility import feasibility as feasibility
from edgeprune.latency.feasibility import floors as floors
from edgeprune.latency.feasibility import rejudged as rejudged
from edgeprune.latency.noise import Patience as Patience
from edgeprune.latency.noise import deviation as deviation
from edgeprune.latency.noise import room as room
from edgeprune.latency.optional import with_options as with_options
from edgeprune.latency.predict import Predictor as Predictor
from edgeprune.latency.profiling import QUICK_NETWORKS as QUICK_NETWORKS
from edgeprune.latency.profiling import Profile as Profile
from edgeprune.latency.profiling import profile as profile
from edgeprune.latency.profiling import quick as quick
from edgeprune.latency.sample import extend as extend
from edgeprune.latency.store import TableStore as TableStore
from edgeprune.latency.store import joined as joined
from edgeprune.latency.store import same_grade as same_grade
from edgeprune.latency.store import sound as sound
from edgeprune.latency.table import Table as Table
from edgeprune.latency.table import check_device as check_device
from edgeprune.latency.timing import Effort as Effort
from edgeprune.latency.variants import options as options
