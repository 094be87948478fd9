"""What the book is made of: parameters, pipeline, reports, results and claims, the site."""
