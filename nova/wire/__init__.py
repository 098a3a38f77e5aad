"""The protocols of EC2 and S3, from the models that botocore publishes: query parameters and XML in, XML out."""
