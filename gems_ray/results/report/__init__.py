"""What there is to know about runs as one page of HTML, which needs no other file and no network."""

from gems_ray.results.report.page import page as page
