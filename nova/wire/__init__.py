"""The EC2 query protocol, from the model that botocore publishes: parameters in, XML out."""
