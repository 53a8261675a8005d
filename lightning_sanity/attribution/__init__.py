"""Attribution methods by name; any function ``(model, inputs, target) -> attribution`` works in their place.

method.py                 what a method is, and what the test must know about it
registry.py               methods by name; a function, a class of captum or a composite of zennit as one
gradients.py              gradient, input x gradient, SmoothGrad and relatives
path.py                   integrated gradients and relatives; completeness.py: do they add up?
guided.py                 Guided Backprop and the deconvnet
differences.py, rescale.py  DeepLift and DeepSHAP, and their rules
relevance.py              LRP and excitation backprop; propagation.py: the rule of every operation
composites.py             a composite of zennit as a method
gradient_cam.py           Grad-CAM and relatives; layers.py: feature maps inside a network
class_activation.py       CAM in its original, exact form
attention.py              attention of the last layer, rolled out, or weighted by its gradient
perturbation.py           occlusion, RISE, and what their kin share
prediction_difference.py  prediction difference analysis
superpixels.py            feature ablation, LIME, KernelSHAP; segmentation.py: what is hidden together
regions.py                XRAI
optimized.py              masks found by gradient descent
controls.py               methods whose verdict is known beforehand
providers.py              captum's classes as methods
baselines.py              what stands for "nothing there"
batching.py               many altered copies of a batch within a given memory
derived.py                attributions that follow from what a pass shows
input_gradients.py        operations whose gradient at their input is cheaper than torch's own
"""

from lightning_sanity.attribution.attention import attention_rollout, gradient_attention, last_attention
from lightning_sanity.attribution.class_activation import cam
from lightning_sanity.attribution.controls import (
    constant,
    edge_detector,
    input_copy,
    input_plus_gradient,
    output_pattern,
    random,
)
from lightning_sanity.attribution.differences import deeplift, deeplift_local, deepshap, deepshap_local
from lightning_sanity.attribution.gradient_cam import (
    gradcam,
    gradcam_plus_plus,
    guided_gradcam,
    internal_influence,
    layercam,
    scorecam,
)
from lightning_sanity.attribution.gradients import (
    competition_input_x_gradient,
    gradient,
    input_x_gradient,
    smoothed,
    smoothgrad,
    smoothgrad_squared,
    vargrad,
)
from lightning_sanity.attribution.guided import deconvnet, guided_backprop
from lightning_sanity.attribution.method import AttributionFn, Method
from lightning_sanity.attribution.optimized import extremal_perturbation, meaningful_perturbation
from lightning_sanity.attribution.path import (
    expected_gradients,
    integrated_gradients,
    integrated_gradients_local,
    smooth_integrated_gradients,
)
from lightning_sanity.attribution.perturbation import occlusion, rise
from lightning_sanity.attribution.prediction_difference import prediction_difference_analysis
from lightning_sanity.attribution.regions import xrai
from lightning_sanity.attribution.registry import available, resolve, resolve_all, table
from lightning_sanity.attribution.relevance import (
    excitation_backprop,
    lrp_alpha_beta,
    lrp_epsilon,
    lrp_z_plus,
)
from lightning_sanity.attribution.superpixels import feature_ablation, kernel_shap, lime

__all__ = [
    "AttributionFn",
    "Method",
    "attention_rollout",
    "available",
    "cam",
    "competition_input_x_gradient",
    "constant",
    "deconvnet",
    "deeplift",
    "deeplift_local",
    "deepshap",
    "deepshap_local",
    "edge_detector",
    "excitation_backprop",
    "expected_gradients",
    "extremal_perturbation",
    "feature_ablation",
    "gradcam",
    "gradcam_plus_plus",
    "gradient",
    "gradient_attention",
    "guided_backprop",
    "guided_gradcam",
    "input_copy",
    "input_plus_gradient",
    "input_x_gradient",
    "integrated_gradients",
    "integrated_gradients_local",
    "internal_influence",
    "kernel_shap",
    "last_attention",
    "layercam",
    "lime",
    "lrp_alpha_beta",
    "lrp_epsilon",
    "lrp_z_plus",
    "meaningful_perturbation",
    "occlusion",
    "output_pattern",
    "prediction_difference_analysis",
    "random",
    "resolve",
    "resolve_all",
    "rise",
    "scorecam",
    "smooth_integrated_gradients",
    "smoothed",
    "smoothgrad",
    "smoothgrad_squared",
    "table",
    "vargrad",
    "xrai",
]
